-- Wireshark dissector of stamps: the identity of a packet's source, in IPv4 option 158 and in option 0x1E of an IPv6
-- Destination Options header. Both options are
--
--     type | length | version (4 bits), flags (4 bits) | key id | identity (32 bits) [ | tag (64 bits) ]
--
-- The fields are nfqe.identity and so on. A stamp that a node refuses has an expert info, of which the field has the
-- name of the drop reason: nfqe.stamp_malformed, nfqe.stamp_version, nfqe.stamp_identity, nfqe.stamp_duplicate.
--
-- It is a post-dissector (it runs after all others), because Wireshark 4.0 has no dissector table of IPv4 options. It
-- reads the bytes of each IP header itself, so an IP header that an ICMP error quotes shows its stamp too. It uses no
-- operator of bits, because Wireshark has Lua 5.2 before version 4.4, and 5.4 from there on.

local VERSION, SIGNED, BODY, TAG = 1, 1, 8, 8
local WORLD, CLUSTER_MIN, CLUSTER_MAX = 2, 256, 2^24 - 1
local RESERVED = {
    [1] = "host", [2] = "world", [3] = "unmanaged", [4] = "health", [5] = "init", [6] = "remote-node",
    [7] = "kube-apiserver", [8] = "ingress",
}

-- Syntax of the option list of one family: end and single have no length byte (-1: no such option), uncounted are the
-- bytes of an option that its length does not count.
local IPV4 = { stamp = 158, finish = 0, single = 1, uncounted = 0 }
local IPV6 = { stamp = 0x1E, finish = -1, single = 0, uncounted = 2 }

local proto = Proto("nfqe", "nfq_enforcer stamp")

local fields = {
    version = ProtoField.uint8("nfqe.version", "Version", base.DEC, nil, 0xF0),
    flags = ProtoField.uint8("nfqe.flags", "Flags", base.HEX, nil, 0x0F),
    signed = ProtoField.bool("nfqe.flags.signed", "Signed", 8, nil, SIGNED),
    key_id = ProtoField.uint8("nfqe.key_id", "Key id", base.DEC),
    identity = ProtoField.uint32("nfqe.identity", "Identity", base.DEC),
    tag = ProtoField.bytes("nfqe.tag", "Tag"),
    labels = ProtoField.string("nfqe.labels", "Labels"),
}
proto.fields = fields

local function refusal(name, sentence)
    return ProtoExpert.new("nfqe." .. name, sentence, expert.group.MALFORMED, expert.severity.ERROR)
end

local experts = {
    malformed = refusal("stamp_malformed", "The stamp has a wrong length or unknown flags"),
    version = refusal("stamp_version", "The stamp has an unknown version"),
    identity = refusal("stamp_identity", "The stamp names an identity that never travels"),
    duplicate = refusal("stamp_duplicate", "The packet bears more than one stamp"),
}
proto.experts = experts

proto.prefs.identities = Pref.string(
    "File of identities", "", "Names identities: the output of 'nfq-enforcer identity list -o json'"
)

local labels = {}  -- of identities, by number

-- Read the file of identities. An object of the list has two members of interest, the identity and its labels.
local function read_labels(path)
    local found = {}
    local file = path ~= "" and io.open(path)
    if file then
        for object in (file:read("*a") or ""):gmatch("%b{}") do
            local number, list = object:match('"identity"%s*:%s*(%d+)'), object:match('"labels"%s*:%s*%[(.-)%]')
            if number and list then
                found[tonumber(number)] = list:gsub('"', ""):gsub("%s+", " "):gsub("^ ", ""):gsub(" $", "")
            end
        end
        file:close()
    end
    return found
end

function proto.prefs_changed()
    labels = read_labels(proto.prefs.identities)
end

function proto.init()
    labels = read_labels(proto.prefs.identities)
end

-- The bytes of the fields: Wireshark gives each protocol's range, which is cut where the capture is.
local ip_headers, ipv6_headers, destination_options = Field.new("ip"), Field.new("ipv6"), Field.new("ipv6.dstopts")

-- Call visit with the range of each stamp in a list of options, and with true if the capture or the list ends in it.
local function each_stamp(list, syntax, visit)
    local offset, size = 0, list:len()
    while offset < size do
        local kind = list(offset, 1):uint()
        if kind == syntax.finish then
            return
        end
        local length = 1
        if kind ~= syntax.single then
            length = offset + 1 < size and list(offset + 1, 1):uint() + syntax.uncounted or 0
            local cut = length < 2 or offset + length > size
            if kind == syntax.stamp then
                visit(list(offset, cut and size - offset or length), cut)
            end
            if cut then
                return
            end
        end
        offset = offset + length
    end
end

local function may_be_stamped(identity)
    return identity == WORLD or (identity >= CLUSTER_MIN and identity <= CLUSTER_MAX)
end

-- Return the reason to refuse a stamp, in the order in which a node checks it; nil for a valid one.
local function reason_of(option, cut)
    if cut or option:len() < 3 then
        return experts.malformed
    end
    local version, flags = option(2, 1):bitfield(0, 4), option(2, 1):bitfield(4, 4)
    if version ~= VERSION then
        return experts.version
    end
    if flags > SIGNED or option:len() ~= (flags == SIGNED and BODY + TAG or BODY) then
        return experts.malformed
    end
    return not may_be_stamped(option(4, 4):uint()) and experts.identity or nil
end

-- Show the fields of a stamp as far as it has them; those of another version are not known.
local function add_fields(tree, option)
    local size = option:len()
    if size < 3 then
        return
    end
    tree:add(fields.version, option(2, 1))
    tree:add(fields.flags, option(2, 1)):add(fields.signed, option(2, 1))
    if option(2, 1):bitfield(0, 4) ~= VERSION then
        return
    end
    if size >= 4 then
        tree:add(fields.key_id, option(3, 1))
    end
    if size >= BODY then
        local identity = option(4, 4):uint()
        local name = labels[identity] or RESERVED[identity]
        tree:add(fields.identity, option(4, 4))
        tree:append_text(", identity " .. identity)
        if name then
            tree:append_text(" (" .. name .. ")")
        end
        if labels[identity] then
            tree:add(fields.labels, option(4, 4), labels[identity]):set_generated()
        end
    end
    if size > BODY then
        tree:add(fields.tag, option(BODY, math.min(size - BODY, TAG)))
    end
end

local function add_stamp(tree, option, cut, is_duplicate)
    local item = tree:add(proto, option)
    add_fields(item, option)
    local reason = reason_of(option, cut)
    if reason then
        item:add_proto_expert_info(reason)
    end
    if is_duplicate then
        item:add_proto_expert_info(experts.duplicate)
    end
end

-- Return the part of a header behind its first bytes, as far as it is captured; nil if nothing is.
local function options_of(header, start, size)
    size = math.min(size, header:len())
    return size > start and header(start, size - start) or nil
end

-- Return the place of the IPv6 header to which an extension header belongs.
local function owner(extension, headers)
    local found = 0
    for place, header in ipairs(headers) do
        if header.offset <= extension.offset then
            found = place
        end
    end
    return found
end

function proto.dissector(_, _, tree)
    for _, header in ipairs({ ip_headers() }) do
        local range = header.range
        local list = range:len() > 0 and options_of(range, 20, range(0, 1):bitfield(4, 4) * 4)
        local seen = 0
        if list then
            each_stamp(list, IPV4, function(option, cut)
                add_stamp(tree, option, cut, seen > 0)
                seen = seen + 1
            end)
        end
    end
    local headers, seen = { ipv6_headers() }, {}
    for _, extension in ipairs({ destination_options() }) do
        local range, packet = extension.range, owner(extension, headers)
        local list = range:len() > 1 and options_of(range, 2, (range(1, 1):uint() + 1) * 8)
        if list then
            each_stamp(list, IPV6, function(option, cut)
                add_stamp(tree, option, cut, (seen[packet] or 0) > 0)
                seen[packet] = (seen[packet] or 0) + 1
            end)
        end
    end
end

register_postdissector(proto)

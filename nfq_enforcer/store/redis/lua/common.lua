-- Beginning of every script. ARGV[1]: the prefix of the keys; ARGV[2]: the caller's schema version.
-- store/redis/schema.py describes the keys.
local PREFIX = ARGV[1] .. ':'
local SCHEMA = ARGV[2]
local META, CHANGES, SEEN = PREFIX .. 'meta', PREFIX .. 'changes', PREFIX .. 'seen'
local NUMBERS, UNUSED = PREFIX .. 'numbers', PREFIX .. 'unused'
local RETIRED, RETIRED_AT = PREFIX .. 'retired', PREFIX .. 'retired-at'
local IPCACHE, FORKS = PREFIX .. 'ipcache', PREFIX .. 'forks'
local HASH = {
    node = PREFIX .. 'nodes',
    document = PREFIX .. 'documents',
    identity = PREFIX .. 'identities',
    endpoint = PREFIX .. 'endpoints',
}
local KEPT = 100000 -- approximate number of changes in the stream

local function now()
    local time = redis.call('TIME')
    return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Return the time, and have no lease count time in which no node has sent a heartbeat: the server was away then, or its
-- clock has jumped. Otherwise the first node that comes back would collect all others.
local LONGEST_PAUSE = 60000 -- ms between two heartbeats of any nodes
local function time_of_leases()
    local time = now()
    local last = tonumber(redis.call('HGET', META, 'clock') or '')
    if last and math.abs(time - last) > LONGEST_PAUSE then
        for _, key in ipairs({ SEEN, UNUSED, RETIRED_AT }) do
            local scores = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
            for place = 1, #scores, 2 do
                local age = math.max(0, last - tonumber(scores[place + 1]))
                if key == SEEN then
                    age = math.min(age, LONGEST_PAUSE)
                end
                redis.call('ZADD', key, time - age, scores[place])
            end
        end
    end
    redis.call('HSET', META, 'clock', time)
    return time
end

local function run_id()
    return string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
end

-- Return whether a counter of META has a value that a script has written: a whole number, far enough from the limit of
-- the numbers that Lua and its JSON can write. With any other value every later change would fail.
local MAX_COUNT = 2 ^ 46 -- as in schema.py
local function is_counter(text)
    return not text or (string.match(text, '^%d+$') and tonumber(text) < MAX_COUNT - 2 ^ 36)
end

local function counter(field)
    return tonumber(redis.call('HGET', META, field) or '0')
end

-- Return the reason to refuse the caller in one word, or nil. A script writes only after a node has joined the current
-- run of the server, because changes lost by a restart or a failover must be determined first.
local function refusal()
    local meta = redis.call('HMGET', META, 'schema', 'run', 'serial', 'revision')
    if not meta[1] then
        return 'empty'
    elseif meta[1] ~= SCHEMA then
        return 'schema ' .. meta[1]
    elseif meta[2] ~= run_id() then
        return 'run'
    elseif not is_counter(meta[3]) or not is_counter(meta[4]) then
        return 'counter' -- a join sets it right
    end
end

local function refuse(reason)
    return cjson.encode({ refused = reason })
end

-- Return whether one id of the stream is greater than another.
local function later(one, other)
    local ms, seq = string.match(one, '(%d+)-(%d+)')
    local other_ms, other_seq = string.match(other, '(%d+)-(%d+)')
    ms, seq, other_ms, other_seq = tonumber(ms), tonumber(seq), tonumber(other_ms), tonumber(other_seq)
    return ms > other_ms or (ms == other_ms and seq > other_seq)
end

-- Add changes to the stream as one entry, and return its id. ``fields`` are further fields of the entry.
local function publish(changes, fields, trim)
    local arguments = { 'XADD', CHANGES }
    if trim then
        arguments[3], arguments[4], arguments[5] = 'MAXLEN', '~', KEPT
    end
    arguments[#arguments + 1] = '*'
    arguments[#arguments + 1] = 'serial'
    arguments[#arguments + 1] = redis.call('HINCRBY', META, 'serial', 1)
    for name, value in pairs(fields) do
        arguments[#arguments + 1] = name
        arguments[#arguments + 1] = value
    end
    if #changes > 0 then
        arguments[#arguments + 1] = 'changes'
        arguments[#arguments + 1] = cjson.encode(changes)
    end
    return redis.call(unpack(arguments))
end

-- Return id and value of an entry, "id value".
local function split_entry(entry)
    local space = string.find(entry, ' ', 1, true)
    if not space then
        return '0-0', entry
    end
    return string.sub(entry, 1, space - 1), string.sub(entry, space + 1)
end

local function value_of(kind, name)
    local entry = redis.call('HGET', HASH[kind], name)
    if entry then
        local _, value = split_entry(entry)
        return value
    end
end

local function set(kind, name, id, value)
    redis.call('HSET', HASH[kind], name, id .. ' ' .. value)
end

-- The endpoint in a value, and the spec of its document, empty for another one; nil for a value that is none.
local function endpoint_of(value)
    local readable, endpoint = pcall(cjson.decode, value)
    if not readable or type(endpoint) ~= 'table' or type(endpoint.document) ~= 'table' then
        return nil
    end
    return endpoint, type(endpoint.document.spec) == 'table' and endpoint.document.spec or {}
end

-- Return the node of a container, nil for any other endpoint. Containers of two hosts often have the same addresses, each
-- behind its host: such an address belongs to one endpoint of each node. So it has a field of its own in IPCACHE, beside
-- the field of the address, which has the last one.
local SOURCE, CONTAINERS = 'nfq-enforcer.io/source', { docker = true, podman = true } -- as in workloads/registrar.py
local function node_of_container(document, node)
    local metadata = document.metadata
    local annotations = type(metadata) == 'table' and metadata.annotations
    if type(annotations) == 'table' and CONTAINERS[annotations[SOURCE]] then
        return tostring(node)
    end
end

local function field_on(ip, node)
    return ip .. '@' .. node
end

-- Return the endpoint that has an address, if it is another one than this: for a container, of its node or of no container.
local function other_owner(ip, name, node)
    local owner = node and redis.call('HGET', IPCACHE, field_on(ip, node))
    if owner and owner ~= name then
        return owner
    end
    owner = redis.call('HGET', IPCACHE, ip)
    if not owner or owner == name then
        return nil
    end
    local endpoint, spec = endpoint_of(node and value_of('endpoint', owner) or '')
    local other = endpoint and node_of_container(endpoint.document, spec.node)
    if not other or other == node then
        return owner
    end
end

-- Delete an endpoint's entry and its indexes. Of a value that cannot be decoded, only the entry is deleted.
local function delete_endpoint(name)
    local value = value_of('endpoint', name)
    if not value then
        return
    end
    redis.call('HDEL', HASH.endpoint, name)
    local endpoint, spec = endpoint_of(value)
    if not endpoint then
        return
    end
    local container = node_of_container(endpoint.document, spec.node)
    for _, ip in ipairs(type(spec.ips) == 'table' and spec.ips or {}) do
        for _, field in ipairs({ ip, container and field_on(ip, container) }) do
            if redis.call('HGET', IPCACHE, field) == name then
                redis.call('HDEL', IPCACHE, field)
            end
        end
    end
    redis.call('SREM', PREFIX .. 'hosted:' .. tostring(spec.node), name)
    local references = PREFIX .. 'references:' .. tostring(endpoint.identity)
    if redis.call('SREM', references, name) == 1 and redis.call('EXISTS', references) == 0 then
        redis.call('ZADD', UNUSED, now(), endpoint.identity)
    end
end

local function set_endpoint(name, id, value, node, identity, ips)
    delete_endpoint(name)
    set('endpoint', name, id, value)
    local endpoint = string.find(value, SOURCE, 1, true) and endpoint_of(value)
    local container = endpoint and node_of_container(endpoint.document, node)
    for _, ip in ipairs(ips) do
        redis.call('HSET', IPCACHE, ip, name)
        if container then
            redis.call('HSET', IPCACHE, field_on(ip, container), name)
        end
    end
    redis.call('SADD', PREFIX .. 'hosted:' .. node, name)
    redis.call('SADD', PREFIX .. 'references:' .. identity, name)
    redis.call('ZREM', UNUSED, identity)
end

local function set_identity(number, labels, id, value)
    set('identity', number, id, value)
    redis.call('HSET', NUMBERS, labels, number)
    redis.call('HDEL', RETIRED, number)
    redis.call('ZREM', RETIRED_AT, number)
    if redis.call('EXISTS', PREFIX .. 'references:' .. number) == 0 then
        redis.call('ZADD', UNUSED, now(), number)
    end
end

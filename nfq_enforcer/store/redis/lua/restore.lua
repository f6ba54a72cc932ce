-- Restore the entries that a store has lost. ARGV[3] is JSON: [[kind, name, id, value or null, more]]; null: delete the
-- entry. ``more`` is the canonical labels of an identity, and [node, identity, ips, labels] of an endpoint.
-- A newer entry of the store stays, and so does an entry with the number, labels or address of a restored one. The
-- answer names the entries not restored for that reason, or because their number stands for other labels by now.
-- ARGV[4]: the first of the forks over which the entries were lost, or empty. With it, entries are left out that are not
-- later than the changes that survived the forks: a node with a later position has restored all of those. ARGV[5]: the
-- position of a node that has restored all entries up to it, or empty. The stream is not trimmed here, so that nodes
-- that come back late still find the fork in it.
local refused = refusal()
if refused then
    return refuse(refused)
end

local places, survived = {}, nil -- list index, name and survived id of these forks; the least survived id
for place, fork in ipairs(ARGV[4] ~= '' and redis.call('LRANGE', FORKS, 0, -1) or {}) do
    local name, after = string.match(fork, '^(%S+) (%S+)$')
    if survived or name == ARGV[4] then
        places[#places + 1] = { place - 1, name, after }
        survived = (survived and later(after, survived)) and survived or after
    end
end

local function newer(name, kind, id)
    local entry = redis.call('HGET', HASH[kind], name)
    if not entry then
        return false
    end
    local stored = string.match(split_entry(entry), '^%d+%-%d+$')
    return stored and not later(id, stored)
end

local function conflict(kind, name, value, more)
    if kind == 'identity' then
        local number = redis.call('HGET', NUMBERS, more)
        local stored = value_of('identity', name)
        return (number and number ~= name) or (stored and number ~= name)
    elseif kind == 'endpoint' then
        if type(more[4]) == 'string' and redis.call('HGET', NUMBERS, more[4]) ~= tostring(more[2]) then
            return true
        end
        local endpoint = string.find(value, SOURCE, 1, true) and endpoint_of(value)
        local container = endpoint and node_of_container(endpoint.document, more[1])
        for _, ip in ipairs(more[3]) do
            if other_owner(ip, name, container) then
                return true
            end
        end
    end
end

local restored, left, documents = {}, {}, 0
for _, one in ipairs(cjson.decode(ARGV[3])) do
    local kind, name, id, value, more = one[1], one[2], one[3], one[4], one[5]
    if value == cjson.null then
        if newer(name, kind, id) then
            left[#left + 1] = { kind, name }
        elseif redis.call('HEXISTS', HASH[kind], name) == 1 then
            restored[#restored + 1] = { kind, name, cjson.null }
            if kind == 'endpoint' then
                delete_endpoint(name)
            else
                redis.call('HDEL', HASH[kind], name)
            end
            documents = documents + (kind == 'document' and 1 or 0)
        end
    elseif newer(name, kind, id) or (survived and not later(id, survived)) then
        -- present already, written anew meanwhile, or deleted before the fork
    elseif conflict(kind, name, value, more) then
        left[#left + 1] = { kind, name }
    else
        restored[#restored + 1] = { kind, name, value, id }
        if kind == 'endpoint' then
            set_endpoint(name, id, value, more[1], more[2], more[3])
        elseif kind == 'identity' then
            set_identity(name, more, id, value)
        else
            set(kind, name, id, value)
        end
        if kind == 'node' then
            redis.call('ZADD', SEEN, 'NX', now(), name)
        end
        documents = documents + (kind == 'document' and 1 or 0)
    end
end
if #restored > 0 then
    local revision = documents > 0 and redis.call('HINCRBY', META, 'revision', 1) or counter('revision')
    publish(restored, { revision = revision, restored = 1 }, false)
end
for _, one in ipairs(ARGV[5] ~= '' and places or {}) do
    if later(ARGV[5], one[3]) then
        redis.call('LSET', FORKS, one[1], one[2] .. ' ' .. ARGV[5])
    end
end
return cjson.encode({ restored = #restored, left = left })

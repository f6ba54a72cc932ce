-- Garbage collection: delete nodes whose lease has run out with their endpoints, identities without an endpoint for the
-- grace, and the records of numbers whose retirement has ended. ARGV[3]: lease, ARGV[4]: grace, ARGV[5]: retirement, in
-- ms; ARGV[6]: minimum ms since the last collection. At most LIMIT entries a call.
local LIMIT = 500
local refused = refusal()
if refused then
    return refuse(refused)
end
local time = time_of_leases()
local collected = tonumber(redis.call('HGET', META, 'collected') or '0') or 0
if collected <= time and time - collected < tonumber(ARGV[6]) then
    return cjson.encode({ early = true, more = false, nodes = '', identities = 0, endpoints = 0 })
end

local endpoints, identities, nodes = {}, {}, {}
for _, node in ipairs(redis.call('ZRANGEBYSCORE', SEEN, '-inf', time - tonumber(ARGV[3]), 'LIMIT', 0, 16)) do
    for _, name in ipairs(redis.call('SRANDMEMBER', PREFIX .. 'hosted:' .. node, LIMIT - #endpoints)) do
        endpoints[#endpoints + 1] = name
    end
    if redis.call('SCARD', PREFIX .. 'hosted:' .. node) <= LIMIT and #endpoints < LIMIT then
        nodes[#nodes + 1] = node
    end
end
local unused = redis.call('ZRANGEBYSCORE', UNUSED, '-inf', time - tonumber(ARGV[4]), 'LIMIT', 0, LIMIT)
for _, number in ipairs(unused) do
    if redis.call('EXISTS', PREFIX .. 'references:' .. number) == 0 and value_of('identity', number) then
        identities[#identities + 1] = number
    else
        redis.call('ZREM', UNUSED, number)
    end
end

local changes = {}
for _, name in ipairs(endpoints) do
    changes[#changes + 1] = { 'endpoint', name, cjson.null }
end
for _, node in ipairs(nodes) do
    changes[#changes + 1] = { 'node', node, cjson.null }
end
for _, number in ipairs(identities) do
    changes[#changes + 1] = { 'identity', number, cjson.null }
end
if #changes > 0 then
    publish(changes, { collected = 1 }, true)
end
for _, name in ipairs(endpoints) do
    delete_endpoint(name)
end
for _, node in ipairs(nodes) do
    redis.call('HDEL', HASH.node, node)
    redis.call('HDEL', PREFIX .. 'enforced', node)
    redis.call('ZREM', SEEN, node)
end
for _, number in ipairs(identities) do
    local _, identity = pcall(cjson.decode, value_of('identity', number))
    redis.call('HDEL', HASH.identity, number)
    redis.call('ZREM', UNUSED, number)
    local labels = type(identity) == 'table' and identity.labels
    if type(labels) == 'string' and redis.call('HGET', NUMBERS, labels) == number then
        redis.call('HDEL', NUMBERS, labels)
        redis.call('HSET', RETIRED, number, labels)
        redis.call('ZADD', RETIRED_AT, time, number)
    end
end
for _, number in ipairs(redis.call('ZRANGEBYSCORE', RETIRED_AT, '-inf', time - tonumber(ARGV[5]), 'LIMIT', 0, LIMIT)) do
    redis.call('HDEL', RETIRED, number)
    redis.call('ZREM', RETIRED_AT, number)
end
local more = #endpoints >= LIMIT or #unused >= LIMIT
if not more then
    redis.call('HSET', META, 'collected', time)
end
return cjson.encode({
    more = more,
    nodes = table.concat(nodes, ','),
    identities = #identities,
    endpoints = #endpoints,
})

-- Heartbeat of a node. ARGV[3]: its name; ARGV[4]: the revision of the policy that it enforces; ARGV[5]: age of the
-- heartbeat in ms: 0, or more for a node that leaves, so that no other node waits for it.
local refused = refusal()
if refused then
    return refuse(refused)
end
local time = time_of_leases()
local registered = redis.call('HEXISTS', HASH.node, ARGV[3]) == 1
if registered then
    redis.call('ZADD', SEEN, time - tonumber(ARGV[5]), ARGV[3])
    redis.call('HSET', PREFIX .. 'enforced', ARGV[3], ARGV[4])
end
return cjson.encode({
    registered = registered,
    now = time,
    fork = redis.call('LINDEX', FORKS, -1) or '',
})

-- Join of a node, the first or a further one. ARGV[3]: its name; ARGV[4]: the id of the last change in its mirror;
-- ARGV[5]: the last revision of the policy in its mirror.
--
-- Initialises an empty store. If the server's run is not the one of the last writes, the server was restarted or
-- replaced, and may have lost the last changes: this is recorded as a fork, "run@marker survived", in a list and in the
-- stream. Ids and revisions never go back, whatever the server's clock or dump has.
local meta = redis.call('HMGET', META, 'schema', 'run')
if meta[1] and meta[1] ~= SCHEMA then
    return refuse('schema ' .. meta[1])
end

local function last_id()
    if redis.call('EXISTS', CHANGES) == 0 then
        return '0-0'
    end
    local info = redis.call('XINFO', 'STREAM', CHANGES)
    for place = 1, #info, 2 do
        if info[place] == 'last-generated-id' then
            return info[place + 1]
        end
    end
end

local run = run_id()
local survived = last_id()
if not meta[1] then
    redis.call('HSET', META, 'schema', SCHEMA)
end
for _, field in ipairs({ 'serial', 'revision' }) do
    if not is_counter(redis.call('HGET', META, field)) then
        redis.call('HSET', META, field, '0')
    end
end
if counter('revision') < tonumber(ARGV[5]) then
    redis.call('HSET', META, 'revision', ARGV[5])
end
-- A fork that was written by hand is removed: no node could ever have seen it, so all of them would join again for ever.
local forks, kept = redis.call('LRANGE', FORKS, 0, -1), {}
for _, fork in ipairs(forks) do
    local ms, seq, after_ms, after_seq = string.match(fork, '^%x+@(%d+)%-(%d+) (%d+)%-(%d+)$')
    if ms and tonumber(ms) < 2 ^ 48 and tonumber(seq) < 2 ^ 32
        and tonumber(after_ms) < 2 ^ 48 and tonumber(after_seq) < 2 ^ 32 then
        kept[#kept + 1] = fork
    end
end
if #kept < #forks then
    redis.call('LTRIM', FORKS, 1, 0)
    for _, fork in ipairs(kept) do
        redis.call('RPUSH', FORKS, fork)
    end
end
if survived ~= '0-0' and later(ARGV[4], survived) then
    redis.call('XSETID', CHANGES, ARGV[4])
end
if meta[2] ~= run then
    if survived == '0-0' and later(ARGV[4], '0-0') then
        redis.call('XADD', CHANGES, ARGV[4], 'serial', redis.call('HINCRBY', META, 'serial', 1))
    end
    local fork = run .. ' ' .. survived
    local marker = publish({}, { fork = fork }, false)
    redis.call('HSET', META, 'run', run)
    redis.call('RPUSH', FORKS, run .. '@' .. marker .. ' ' .. survived)
    redis.call('LTRIM', FORKS, -64, -1)
end
return cjson.encode({
    last = last_id(),
    serial = counter('serial'),
    revision = counter('revision'),
    forks = table.concat(redis.call('LRANGE', FORKS, 0, -1), ','),
    registered = redis.call('HEXISTS', HASH.node, ARGV[3]) == 1,
    now = now(),
})

-- Write changes, all or nothing. ARGV[3] is JSON:
--   endpoints: [{name, node, ips, document, labels, identity, preferred}]; ``document`` and ``identity`` are JSON texts,
--     ``labels`` the canonical text of the identity's labels, ``preferred`` the number for a new identity if it is free
--   values: [[kind, name, value]] of nodes and documents, the value as JSON text
--   deleted: [[kind, name]]
--   hosted_by: a node, or empty; an endpoint to be deleted that is on another node is left as it is
-- Entries with equal values are not written again. The answer has the change's id (none if nothing was written), the
-- policy's revision, the number of each endpoint, the new ones of these numbers, the deleted keys that were missing, and
-- those of endpoints left as they are.
local refused = refusal()
if refused then
    return refuse(refused)
end
local request = cjson.decode(ARGV[3])

local leaving, after = {}, {} -- endpoints to be deleted; addresses of endpoints after this write
local to_delete, left = {}, {}
for _, one in ipairs(request.deleted) do
    local value = one[1] == 'endpoint' and request.hosted_by ~= '' and value_of('endpoint', one[2])
    local endpoint, spec = endpoint_of(value or '')
    if endpoint and spec.node ~= request.hosted_by then
        left[#left + 1] = one
    else
        leaving[one[1] .. ' ' .. one[2]] = true
        to_delete[#to_delete + 1] = one
    end
end
for _, endpoint in ipairs(request.endpoints) do
    after[endpoint.name] = {}
    for _, ip in ipairs(endpoint.ips) do
        after[endpoint.name][ip] = true
    end
end
local taken, claimed = {}, {}
for _, endpoint in ipairs(request.endpoints) do
    local container = string.find(endpoint.document, SOURCE, 1, true)
        and node_of_container(cjson.decode(endpoint.document), endpoint.node)
    for _, ip in ipairs(endpoint.ips) do
        local owner = other_owner(ip, endpoint.name, container)
        if claimed[ip] and claimed[ip] ~= endpoint.name then
            taken[#taken + 1] = { ip, claimed[ip], endpoint.name }
        elseif owner and not leaving['endpoint ' .. owner]
            and (not after[owner] or after[owner][ip]) then
            taken[#taken + 1] = { ip, owner, endpoint.name }
        end
        claimed[ip] = endpoint.name
    end
end
if #taken > 0 then
    return cjson.encode({ refused = 'address', taken = taken })
end

local allocated = {} -- numbers by labels, of this call
local in_use = {} -- set of these numbers
local function free(number, labels)
    local retired = redis.call('HGET', RETIRED, number)
    return not in_use[number] and redis.call('HEXISTS', HASH.identity, number) == 0
        and (not retired or retired == labels)
end
local function means_others(number, labels)
    local value = value_of('identity', number)
    local readable, identity = pcall(cjson.decode, value or '{}')
    return not value or (readable and type(identity) == 'table' and identity.labels ~= labels)
end
local function number_of(labels, preferred)
    if allocated[labels] then
        return allocated[labels], false
    end
    local known = tonumber(redis.call('HGET', NUMBERS, labels) or nil)
    if known and (known % 1 ~= 0 or known < 256 or known > 16777215) then
        known = nil -- written by hand
    end
    if known and not means_others(known, labels) then
        return known, false
    end
    local number = known or preferred -- an identity deleted by hand gets its number back if it is free
    while not free(number, labels) do
        number = number < 16777215 and number + 1 or 256
    end
    allocated[labels], in_use[number] = number, true
    return number, true
end

local changes, endpoints, documents = {}, {}, 0
local numbers, created = {}, {}
for place, endpoint in ipairs(request.endpoints) do
    local number, new = number_of(endpoint.labels, endpoint.preferred)
    numbers[place] = number
    if new then
        created[#created + 1] = { number, endpoint.labels, endpoint.identity }
        changes[#changes + 1] = { 'identity', tostring(number), endpoint.identity }
    end
    local value = '{"v":1,"identity":' .. number .. ',"document":' .. endpoint.document .. '}'
    if value_of('endpoint', endpoint.name) ~= value then
        endpoints[#endpoints + 1] = { endpoint, number, value }
        changes[#changes + 1] = { 'endpoint', endpoint.name, value }
    end
end
local values = {}
for _, one in ipairs(request.values) do
    if value_of(one[1], one[2]) ~= one[3] then
        values[#values + 1] = one
        changes[#changes + 1] = one
        documents = documents + (one[1] == 'document' and 1 or 0)
    end
end
local deleted, missing = {}, {}
for _, one in ipairs(to_delete) do
    if redis.call('HEXISTS', HASH[one[1]], one[2]) == 1 then
        deleted[#deleted + 1] = one
        changes[#changes + 1] = { one[1], one[2], cjson.null }
        documents = documents + (one[1] == 'document' and 1 or 0)
    else
        missing[#missing + 1] = one
    end
end

local revision = documents > 0 and redis.call('HINCRBY', META, 'revision', 1) or counter('revision')
local id
if #changes > 0 then
    id = publish(changes, { revision = revision }, true)
    for _, one in ipairs(deleted) do
        if one[1] == 'endpoint' then
            delete_endpoint(one[2])
        else
            redis.call('HDEL', HASH[one[1]], one[2])
        end
        if one[1] == 'node' then
            redis.call('ZREM', SEEN, one[2])
        end
    end
    for _, one in ipairs(values) do
        set(one[1], one[2], id, one[3])
        if one[1] == 'node' then
            redis.call('ZADD', SEEN, now(), one[2])
        end
    end
    for _, one in ipairs(created) do
        set_identity(one[1], one[2], id, one[3])
    end
    for _, one in ipairs(endpoints) do
        set_endpoint(one[1].name, id, one[3], one[1].node, one[2], one[1].ips)
    end
end
local new = {}
for place, one in ipairs(created) do
    new[place] = one[1]
end
return cjson.encode({ id = id, revision = revision, numbers = numbers, new = new, missing = missing, left = left })

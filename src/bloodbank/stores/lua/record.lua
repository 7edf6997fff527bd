-- record: write events and their edges, whole or not at all; an event that is there already stays as it is.
--
-- KEYS[1]      the format key
-- KEYS[2...]   for each event: its own key, then the key of the children of each of its parents
-- ARGV[1]      format that the caller writes
-- ARGV[2]      time to live in milliseconds
-- ARGV[3...]   for each event: its id (16 bytes), its value, how many parents it has
--
-- Returns the format found when it is another one, in which case nothing was written; otherwise false.

local found = redis.call('GET', KEYS[1])
if found and found ~= ARGV[1] then
  return found
end

local ttl = tonumber(ARGV[2])

-- Several services may set different times to live on one key: the longest holds.
local function live_on(key)
  if redis.call('PTTL', key) < ttl then
    redis.call('PEXPIRE', key, ttl)
  end
end

redis.call('SET', KEYS[1], ARGV[1], 'NX')
live_on(KEYS[1])

local key = 2
for argument = 3, #ARGV, 3 do
  local parents = tonumber(ARGV[argument + 2])
  if redis.call('SET', KEYS[key], ARGV[argument + 1], 'NX', 'PX', ttl) then
    for parent = key + 1, key + parents do
      redis.call('ZADD', KEYS[parent], 0, ARGV[argument])
      live_on(KEYS[parent])
    end
  end
  key = key + 1 + parents
end

return false

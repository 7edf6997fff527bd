-- forget: remove events, and each from the children of its parents. Its own children keep naming it.
--
-- KEYS         for each event: its own key, then the key of the children of each of its parents
-- ARGV         for each event: its id (16 bytes), how many parents it has
--
-- Returns how many events were there.

local forgotten = 0
local key = 1
for argument = 1, #ARGV, 2 do
  local parents = tonumber(ARGV[argument + 1])
  if redis.call('DEL', KEYS[key]) == 1 then
    forgotten = forgotten + 1
    for parent = key + 1, key + parents do
      redis.call('ZREM', KEYS[parent], ARGV[argument])
    end
  end
  key = key + 1 + parents
end

return forgotten

-- release: give claims back that one owner has; those of others stay.
--
-- KEYS...  keys of the claims
-- ARGV[1]  owner, after its length (1 byte)
--
-- Returns how many there were.

local owner, released = ARGV[1], 0
for _, key in ipairs(KEYS) do
  local held = redis.call('GET', key)
  if held and string.sub(held, 1, #owner) == owner then
    released = released + redis.call('DEL', key)
  end
end
return released

-- forget: remove events, and each from the children of its parents. Its own children keep naming it.
-- The keys and values are described in docs/redis-layout.md. Begins with remove_child.
--
-- ARGV[1]       prefix of the keys with its colon
-- ARGV[2...]    for each event: the key of its bucket, its id, its parents end to end
--
-- Returns how many events were there.

local prefix = ARGV[1]
local forgotten = 0
for at = 2, #ARGV, 3 do
  local key, id, parents = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  if call('HDEL', key, id) == 1 then
    forgotten = forgotten + 1
    local name = string.match(string.sub(key, #prefix + 1), '^([^:]+):e:')
    local base = prefix .. name
    call('DEL', base .. ':v:' .. id)
    local row = call('HGET', KEYS[1], name)
    local bits = row and string.match(row, '^%d+ (%d+)')
    if bits then
      for parent = 1, #parents, 16 do
        remove_child(base, bits, string.sub(parents, parent, parent + 15), id)
      end
    end
  end
end
return forgotten

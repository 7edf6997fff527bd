-- forget_edges: take events from the children of parents of one shard, in whichever generation they are.
-- The keys and values are described in docs/redis-layout.md. Begins with remove_child.
--
-- KEYS[1]  the table of generations
-- ARGV[1]  prefix of the keys with its colon
-- ARGV[2]  ids of parent and child, edge after edge, end to end

local prefix, edges = ARGV[1], ARGV[2]
local rows = call('HGETALL', KEYS[1])
for at = 1, #rows, 2 do
  local bits = string.match(rows[at + 1], '^%d+ (%d+)')
  if bits then
    for edge = 1, #edges, 32 do
      remove_child(prefix .. rows[at], bits, string.sub(edges, edge, edge + 15), string.sub(edges, edge + 16, edge + 31))
    end
  end
end
return false

-- record_edges: add events to the children of parents of one shard; what is there already stays as it is.
-- The keys and values are described in docs/redis-layout.md. Begins with shard, generations and children.
--
-- KEYS[1], [2]  the format key, the table of generations
-- ARGV[1...3]   format that the caller writes, time to live in milliseconds, prefix of the keys with its colon
-- ARGV[4]       for each parent: its id, how many children (2 bytes), their ids; each child once
--
-- Returns the format found when it is another one, in which case nothing was written; otherwise false.

-- Returns those of a family that a generation does not have yet.
local function without(row, parent, place, family)
  local children = call('HGET', row.base .. ':c:' .. format('%x', place % row.buckets), parent)
  if not children then
    return family
  end
  local rest, has = {}, {}
  if children == MANY then
    for _, child in ipairs(family) do
      has[child] = call('ZSCORE', row.base .. ':k:' .. parent, child)
    end
  else
    for at = 1, #children, 16 do
      has[sub(children, at, at + 15)] = true
    end
  end
  for _, child in ipairs(family) do
    if not has[child] then
      rest[#rest + 1] = child
    end
  end
  return rest, children
end

local edges, at = ARGV[4], 1
while at <= #edges do
  local parent, count
  parent, count, at = struct.unpack('>c16I2', edges, at)
  local place, family = place_of(parent), {}
  for number = 1, count do
    family[number] = sub(edges, at, at + 15)
    at = at + 16
  end
  for _, row in ipairs(older) do
    family = without(row, parent, place, family)
  end
  local children
  family, children = without({ base = base, buckets = buckets }, parent, place, family)
  if #family > 0 then
    add_children(children_base .. format('%x', place % buckets), parent, children or false, family)
  end
end
return false

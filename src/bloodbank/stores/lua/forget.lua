-- forget: remove events, and each from the children of its parents. Its own children keep naming it.
-- The keys and values are described in docs/redis-layout.md.
--
-- ARGV[1]       prefix of the keys with its colon
-- ARGV[2...]    for each event: the key of its bucket, its id, its parents end to end
--
-- Returns how many events were there.

local MANY = '+'

local call = redis.call
local prefix = ARGV[1]

local function remove_child(base, bits, parent, child)
  local key = base .. ':c:' .. string.format('%x', struct.unpack('>I4', parent, 13) % 2 ^ bits)
  local children = call('HGET', key, parent)
  if children == MANY then
    local many = base .. ':k:' .. parent
    call('ZREM', many, child)
    if call('ZCARD', many) == 0 then
      call('HDEL', key, parent)
    end
  elseif children then
    local rest = {}
    for at = 1, #children, 16 do
      local other = string.sub(children, at, at + 15)
      if other ~= child then
        rest[#rest + 1] = other
      end
    end
    if #rest > 0 then
      call('HSET', key, parent, table.concat(rest))
    else
      call('HDEL', key, parent)
    end
  end
end

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

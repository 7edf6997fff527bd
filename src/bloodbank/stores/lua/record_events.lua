-- record_events: write events of one shard without their edges; an event that is there already stays as it is.
-- The keys and values are described in docs/redis-layout.md. Begins with shard, generations and names.
--
-- KEYS and ARGV as record.lua has them.
--
-- Returns the format found when it is another one, in which case nothing was written, otherwise false; and, end to
-- end, id and value of each event that is there already with other parents.

local SHORT = 64 -- bytes; a hash with a longer value is no listpack
local EVENT = '>c16I2I4c0I4c0'

local rows = { { base = base, buckets = buckets } }
for _, row in ipairs(older) do
  rows[#rows + 1] = row
end

local function recorded(id, place)
  for number = 1, #rows do
    local row = rows[number]
    local value = call('HGET', row.base .. ':e:' .. format('%x', place % row.buckets), id)
    if value == '' then
      value = call('GET', row.base .. ':v:' .. id)
    end
    if value then
      return value
    end
  end
  return false
end

local events, answer = ARGV[4], { false }
local added, at = 0, 1
while at <= #events do
  local id, number, parents, rest
  id, number, parents, rest, at = struct.unpack(EVENT, events, at)
  local place = place_of(id)
  local before = recorded(id, place)
  if not before then
    local value = parents .. (kinds[number] or kind_of(number)) .. rest
    local key = base .. ':e:' .. format('%x', place % buckets)
    local is_long = #value > SHORT
    if is_long then
      -- Before the bucket says that it is there.
      call('SET', base .. ':v:' .. id, value)
      call('PEXPIREAT', base .. ':v:' .. id, expires)
    end
    call('HSET', key, id, is_long and '' or value)
    keep(key)
    added = added + 1
  elseif sub(before, 1, #parents) ~= parents then
    answer[#answer + 1] = id
    answer[#answer + 1] = before
  end
end

if added > 0 then
  call('HINCRBY', KEYS[2], current.name .. '#', added)
end
return answer

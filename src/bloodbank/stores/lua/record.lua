-- record: write events and their edges, whole or not at all; an event that is there already stays as it is.
-- The keys and values are described in docs/redis-layout.md. Begins with generations, names and children.
--
-- KEYS[1], [2]  the format key, the table of generations. The others follow from the generation that is open now.
-- ARGV[1...3]   format that the caller writes, time to live in milliseconds, prefix of the keys with its colon
-- ARGV[4]       events end to end: id, number of the kind (from 1, 2 bytes), the first part of the value (its parents)
--               and the last (times, digest), each after its length (4 bytes)
-- ARGV[5...]    for each kind: event type, source
--
-- Returns the format found when it is another one, in which case nothing was written; otherwise false.
--
-- What costs time here are commands, a microsecond each with their arguments: so an event is looked for and written
-- by one, the children that a parent gets in this run are added together, and a key that has its expiry is left alone.

local EVENT = '>c16I2I4c0I4c0'

local function is_older(id, place)
  for number = 1, #older do
    local row = older[number]
    if call('HEXISTS', row.base .. ':e:' .. format('%x', place % row.buckets), id) == 1 then
      return true
    end
  end
  return false
end

local events, events_base = ARGV[4], base .. ':e:'
local families = {} -- by parent: the children that it gets
local added, at = 0, 1
while at <= #events do
  local id, number, parents, rest
  id, number, parents, rest, at = struct.unpack(EVENT, events, at)
  local place = place_of(id)
  if not is_older(id, place) then
    local value = parents .. (kinds[number] or kind_of(number)) .. rest
    local key = events_base .. format('%x', place % buckets)
    local is_long = #value > SHORT
    if call('HSETNX', key, id, is_long and '' or value) == 1 then
      keep(key)
      if is_long then
        call('SET', base .. ':v:' .. id, value)
        call('PEXPIREAT', base .. ':v:' .. id, expires)
      end
      for first = #parents % 16 + 1, #parents, 16 do
        local parent = sub(parents, first, first + 15)
        local family = families[parent]
        if not family then
          families[parent] = { id }
        elseif family[#family] ~= id then -- the event may name this parent twice
          family[#family + 1] = id
        end
      end
      added = added + 1
    end
  end
end

for parent, family in pairs(families) do
  local key = children_base .. format('%x', place_of(parent) % buckets)
  add_children(key, parent, call('HGET', key, parent), family)
end

if added > 0 then
  call('HINCRBY', KEYS[2], current.name .. '#', added)
end
return false

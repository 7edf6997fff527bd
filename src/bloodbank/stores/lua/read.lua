-- read: return events with what they name or what names them, and go on from there while it is cheap.
-- The keys and values are described in docs/redis-layout.md.
--
-- KEYS[1], [2]  the format key, the table of generations
-- ARGV[1]       prefix of the keys with its colon
-- ARGV[2]       'up' to go on to parents, 'down' to children
-- ARGV[3]       most children returned of an event; 0: only how many there are
-- ARGV[4], [5]  most events returned beyond those asked; most hops to go on
-- ARGV[6]       ids asked, end to end
--
-- Returns the format found (or false), names and events. Names: number of the generation (1 byte) and of the name
-- (2 bytes), text, and so on. Events, end to end, those that are not known at all left out: id, number of the
-- generation (1 byte), how many children, how many of them follow, bytes of the value (4 bytes each, the last 0 for
-- an event that was only named), value, children in no order.

local MANY = '+'

local call, sub = redis.call, string.sub
local prefix, down, most = ARGV[1], ARGV[2] == 'down', tonumber(ARGV[3])
local time = call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)

local live = {}
local rows = call('HGETALL', KEYS[2])
for at = 1, #rows, 2 do
  local bits, expires = string.match(rows[at + 1], '^%d+ (%d+) %d+ (%d+)$')
  if bits and tonumber(expires) > now then
    local base = prefix .. rows[at]
    live[#live + 1] = { base = base, events = base .. ':e:', children = base .. ':c:', buckets = 2 ^ bits, names = {} }
  end
end

local function value_of(id, place)
  for number, row in ipairs(live) do
    local value = call('HGET', row.events .. string.format('%x', place % row.buckets), id)
    if value == '' then
      value = call('GET', row.base .. ':v:' .. id)
    end
    if value then
      return value, number
    end
  end
  return '', 0
end

-- Returns how many children there are, and lists of some of them, end to end.
local function children_of(id, place)
  local total, lists = 0, {}
  for _, row in ipairs(live) do
    local children = call('HGET', row.children .. string.format('%x', place % row.buckets), id)
    if children == MANY then
      local key = row.base .. ':k:' .. id
      total = total + call('ZCARD', key)
      if most > 0 then
        lists[#lists + 1] = table.concat(call('ZRANGE', key, 0, most - 1))
      end
    elseif children then
      total = total + #children / 16
      if most > 0 then
        lists[#lists + 1] = children
      end
    end
  end
  return total, table.concat(lists)
end

local function parents_of(value)
  local count, first = string.byte(value, 1), 2
  if count == 255 then
    count, first = struct.unpack('>I2', value, 2), 4
  end
  return sub(value, first, first + 16 * count - 1), first + 16 * count
end

local answer = {}
local seen = {}
local function visit(id)
  local place = struct.unpack('>I4', id, 13)
  local value, number = value_of(id, place)
  local total, children = children_of(id, place)
  if number == 0 and total == 0 then
    return ''
  end
  local parents, kind = '', 0
  if number > 0 then
    parents, kind = parents_of(value)
    local names = live[number].names
    names[sub(value, kind, kind + 1)] = true
    names[sub(value, kind + 2, kind + 3)] = true
  end
  answer[#answer + 1] = id .. struct.pack('>I1I4I4I4', number, total, #children / 16, #value) .. value .. children
  return down and children or parents
end

local level = ARGV[6]
local room, hops = tonumber(ARGV[4]) + #level / 16, tonumber(ARGV[5])
while #level > 0 and room > 0 do
  local following = {}
  for at = 1, #level, 16 do
    local id = sub(level, at, at + 15)
    if room > 0 and not seen[id] then
      seen[id] = true
      room = room - 1
      following[#following + 1] = visit(id)
    end
  end
  if hops == 0 then
    break
  end
  hops = hops - 1
  level = table.concat(following)
end

local names = {}
for number, row in ipairs(live) do
  for packed in pairs(row.names) do
    local name = struct.unpack('>I2', packed)
    if name > 0 then
      names[#names + 1] = struct.pack('>I1', number) .. packed
      names[#names + 1] = call('HGET', row.base .. ':n', 'n' .. name) or ''
    end
  end
end

return { call('GET', KEYS[1]), names, table.concat(answer) }

-- read: return events with what they name or what names them, and go on from there while it is cheap.
-- The keys and values are described in docs/redis-layout.md.
--
-- KEYS[1], [2]  the format key, the table of generations
-- ARGV[1]       prefix of the keys with its colon
-- ARGV[2]       'up' to go on to parents, 'down' to children
-- ARGV[3]       most children returned of an event in each generation; 0: only how many there are
-- ARGV[4], [5]  most events returned beyond those asked; most hops to go on
-- ARGV[6], [7]  ids asked, and ids that need not be returned, end to end
-- ARGV[8]       children left out before the first one returned, in each generation
--
-- Returns the format found (or false), kinds, events, and how many of the ids asked were looked at, from the first on.
-- Kinds: number of the generation (1 byte), of the type and of
-- the source (2 bytes each); text of the type, of the source; and so on. Events, end to end, those that are not known
-- at all left out: id, number of the generation (1 byte), how many children, how many of them follow, bytes of the
-- value (4 bytes each, the last 0 for an event that was only named), value, children in no order.

local MANY = '+'
local MOST_WORK = 4000 -- of going on, about a microsecond each
local MOST_WORK_ASKED = 12000 -- of answering what was asked; what is left then is asked again

local call, sub, byte, pack, unpack = redis.call, string.sub, string.byte, struct.pack, struct.unpack
local prefix, down, most, skip = ARGV[1], ARGV[2] == 'down', tonumber(ARGV[3]), tonumber(ARGV[8])
local time = call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)

-- Names of buckets by their number, made when they are first needed: making a string costs as much as a read.
local function bucket_keys(base)
  return setmetatable({}, {
    __index = function(keys, number)
      local key = base .. string.format('%x', number)
      keys[number] = key
      return key
    end,
  })
end

local live = {}
local rows = call('HGETALL', KEYS[2])
for at = 1, #rows, 2 do
  local bits, expires = string.match(rows[at + 1], '^%d+ (%d+) %d+ (%d+)$')
  if bits and tonumber(expires) > now then
    local base = prefix .. rows[at]
    live[#live + 1] = {
      base = base,
      events = bucket_keys(base .. ':e:'),
      children = bucket_keys(base .. ':c:'),
      buckets = 2 ^ bits,
      kinds = {},
    }
  end
end

local function value_of(id, place)
  for number = 1, #live do
    local row = live[number]
    local value = call('HGET', row.events[place % row.buckets], id)
    if value == '' then
      value = call('GET', row.base .. ':v:' .. id)
    end
    if value then
      return value, number
    end
  end
  return '', 0
end

-- Returns how many children there are, and some of them, end to end.
local function children_of(id, place)
  local total, some = 0, ''
  for number = 1, #live do
    local row = live[number]
    local children = call('HGET', row.children[place % row.buckets], id)
    if children == MANY then
      local key = row.base .. ':k:' .. id
      total = total + call('ZCARD', key)
      if most > 0 then
        some = some .. table.concat(call('ZRANGE', key, skip, skip + most - 1))
      end
    elseif children then
      total = total + #children / 16
      if most > 0 and skip == 0 then
        some = some .. children
      end
    end
  end
  return total, some
end

-- Returns the parents in a value, end to end, and its kind: the numbers of its type and its source.
local function head_of(value)
  local count, first = byte(value, 1), 2
  if count == 255 then
    count, first = unpack('>I2', value, 2), 4
  end
  local kind = first + 16 * count
  return sub(value, first, kind - 1), sub(value, kind, kind + 3)
end

local answer, length, work = {}, 0, 0
local function visit(id)
  local place = unpack('>I4', id, 13)
  local value, number = value_of(id, place)
  local total, children = children_of(id, place)
  work = work + 2 * #live + #children / 64
  if number == 0 and total == 0 then
    return ''
  end
  local parents, kind = '', nil
  if number > 0 then
    parents, kind = head_of(value)
    live[number].kinds[kind] = true
  end
  answer[length + 1] = id
  answer[length + 2] = pack('>I1I4I4I4', number, total, #children / 16, #value)
  answer[length + 3] = value
  answer[length + 4] = children
  length = length + 4
  return down and children or parents
end

local seen = {}
for at = 1, #ARGV[7], 16 do
  seen[sub(ARGV[7], at, at + 15)] = true
end

local level = ARGV[6]
local looked_at
local left, hops = tonumber(ARGV[4]) + #level / 16, tonumber(ARGV[5])
while #level > 0 and left > 0 do
  local following, count = {}, 0
  for at = 1, #level, 16 do
    if work > (looked_at and MOST_WORK or MOST_WORK_ASKED) then
      looked_at = looked_at or (at - 1) / 16
      break
    end
    local id = sub(level, at, at + 15)
    if left > 0 and not seen[id] then
      seen[id] = true
      left = left - 1
      count = count + 1
      following[count] = visit(id)
    end
  end
  looked_at = looked_at or #level / 16
  if hops == 0 or work > MOST_WORK then
    break
  end
  hops = hops - 1
  level = table.concat(following)
end

local kinds = {}
for number, row in ipairs(live) do
  for kind in pairs(row.kinds) do
    kinds[#kinds + 1] = pack('>I1', number) .. kind
    for at = 1, 3, 2 do
      kinds[#kinds + 1] = call('HGET', row.base .. ':n', 'n' .. unpack('>I2', kind, at)) or ''
    end
  end
end

return { call('GET', KEYS[1]), kinds, table.concat(answer), looked_at or 0 }

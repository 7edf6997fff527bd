-- read: return events with what they name or what names them, and go on from there while it is cheap.
-- The keys and values are described in docs/redis-layout.md.
--
-- KEYS[1], [2]  the format key, the table of generations
-- ARGV[1]       prefix of the keys with its colon
-- ARGV[2]       'up' to go on to parents, 'down' to children
-- ARGV[3]       most children returned of an event in each generation
-- ARGV[4], [5]  most events returned beyond those asked; most hops to go on
-- ARGV[6], [7]  ids asked, and ids that need not be returned, end to end
-- ARGV[8]       children left out before the first one returned, in each generation
--
-- Returns the format found (or false), kinds, groups, how many of the ids asked were looked at, from the first on; and
-- some of the ids that come next, end to end, the nearest first.
-- Kinds: text of the type, of the source, 1 if the value itself has one of them or else 0; and so on.
-- Groups: of all events whose values are equally long and have as many parents: that length (0: they were only named)
-- and number of parents; their ids; the events; on the way down, their children; and so on. An event: number of its kind (2 bytes, from 1; 0 when it was only named),
-- how many children it has, how many of them are returned (4 bytes each), value. Children: ids, of one event in no
-- order. Events that are not known at all are left out.

local MANY = '+'
local MOST_WORK = 4000 -- reads while going on; one takes 1 to 4 microseconds with what belongs to it
local MOST_WORK_ASKED = 4000 -- reads for what was asked; what is left then is asked again
local MOST_OPEN = 2000 -- ids returned that come next

local call, sub, byte, concat = redis.call, string.sub, string.byte, table.concat
local prefix, down, most, skip = ARGV[1], ARGV[2] == 'down', tonumber(ARGV[3]), tonumber(ARGV[8])
local time = call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)

local live = {}
local rows = call('HGETALL', KEYS[2])
for at = 1, #rows, 2 do
  local bits, expires = string.match(rows[at + 1], '^%d+ (%d+) %d+ (%d+)$')
  if bits and tonumber(expires) > now then
    local base = prefix .. rows[at]
    live[#live + 1] = { base = base, buckets = 2 ^ bits, events = {}, children = {}, kinds = {} }
  end
end

local generations, reads = #live, 2 * #live

-- The names of buckets are kept: making them costs as much as a read.
local function name_bucket(row, bucket)
  local number = string.format('%x', bucket)
  row.events[bucket] = row.base .. ':e:' .. number
  row.children[bucket] = row.base .. ':c:' .. number
  return row.events[bucket]
end

-- Kinds by the numbers of their names. heads: the numbers of an event as bytes, by how many children it has.
local kinds, kinds_found = {}, 0
local only_named = { number = 0, heads = {} }
local function learn_kind(row, numbers)
  local type_number, source_number = struct.unpack('>I2I2', numbers)
  for _, number in ipairs({ type_number, source_number }) do
    kinds[#kinds + 1] = call('HGET', row.base .. ':n', 'n' .. number) or ''
  end
  kinds[#kinds + 1] = (type_number == 0 or source_number == 0) and 1 or 0
  kinds_found = kinds_found + 1
  row.kinds[numbers] = { number = kinds_found, heads = {} }
  return row.kinds[numbers]
end

-- Returns how many children an event has in one generation where they are many, and some of them, end to end.
local function many_children(row, id)
  local key = row.base .. ':k:' .. id
  return call('ZCARD', key), down and concat(call('ZRANGE', key, skip, skip + most - 1)) or ''
end

local groups, work = {}, 0
local function new_group(length, parents)
  local group = { length = length, parents = parents, ids = {}, events = {}, children = {}, count = 0 }
  groups[length * 65536 + parents] = group
  return group
end

-- Adds an event to the answer; returns its neighbours, end to end.
local function visit(id)
  local a, b, c, d = byte(id, 13, 16)
  local place = ((a * 256 + b) * 256 + c) * 256 + d
  local value, home
  local total, children = 0, ''
  for number = 1, generations do
    local row = live[number]
    local bucket = place % row.buckets
    local key = row.events[bucket] or name_bucket(row, bucket)
    if not value then
      value, home = call('HGET', key, id), row
      if value == '' then
        value = call('GET', row.base .. ':v:' .. id)
      end
    end
    local some = call('HGET', row.children[bucket], id)
    if some == MANY then
      local count
      count, some = many_children(row, id)
      total = total + count
      children = children .. some
    elseif some then
      total = total + #some / 16
      if down and skip == 0 then
        children = children .. some
      end
    end
  end
  work = work + reads + #children / 64

  local kind, parents, named = only_named, '', 0
  if value then
    local first = 2
    named = byte(value)
    if named == 255 then
      named, first = struct.unpack('>I2', value, 2), 4
    end
    local stop = first + 16 * named
    local numbers = sub(value, stop, stop + 3)
    kind = home.kinds[numbers] or learn_kind(home, numbers)
    if not down then
      parents = sub(value, first, stop - 1)
    end
  elseif total == 0 then
    return ''
  else
    value = ''
  end

  local group = groups[#value * 65536 + named] or new_group(#value, named)
  local head, listed = kind.heads[total], #children / 16
  if not head or down and listed ~= total then
    head = struct.pack('>I2I4I4', kind.number, total, listed)
    if not down or listed == total then
      kind.heads[total] = head
    end
  end
  local count = group.count + 1
  group.count = count
  local events = group.events
  group.ids[count] = id
  events[2 * count - 1] = head
  events[2 * count] = value
  if not down then
    return parents
  end
  group.children[count] = children
  return children
end

local seen = {}
for at = 1, #ARGV[7], 16 do
  seen[sub(ARGV[7], at, at + 15)] = true
end

-- Looks at a level until there is no room or time left; returns how far it came, and the next level.
local following = {}
local left = tonumber(ARGV[4]) + #ARGV[6] / 16
local function look_at(level, most_work)
  local count = 0
  for at = 1, #level, 16 do
    local id = sub(level, at, at + 15)
    if not seen[id] then
      if left == 0 or work > most_work then
        return at - 1, concat(following, '', 1, count)
      end
      seen[id] = true
      left = left - 1
      count = count + 1
      following[count] = visit(id)
    end
  end
  return #level, count == 1 and following[1] or concat(following, '', 1, count)
end

local hops = tonumber(ARGV[5])
local level = ARGV[6]
local looked_at, next_level = look_at(level, MOST_WORK_ASKED)
local asked, rest = looked_at / 16, ''
while hops > 0 and #next_level > 0 and rest == '' do
  hops = hops - 1
  if #next_level == 16 and left > 0 and work <= MOST_WORK and not seen[next_level] then
    -- A level of one event, as in a chain: all else would cost as much as reading it.
    seen[next_level] = true
    left = left - 1
    next_level = visit(next_level)
  else
    level = next_level
    looked_at, next_level = look_at(level, MOST_WORK)
    rest = sub(level, looked_at + 1)
  end
end

-- What was not looked at of the level comes before what follows from it.
local open = {}
local both = hops > 0 and rest .. next_level or rest
for at = 1, #both, 16 do
  local id = sub(both, at, at + 15)
  if not seen[id] then
    seen[id] = true
    open[#open + 1] = id
    if #open == MOST_OPEN then
      break
    end
  end
end

local answer = {}
for _, group in pairs(groups) do
  answer[#answer + 1] = group.length
  answer[#answer + 1] = group.parents
  answer[#answer + 1] = concat(group.ids)
  answer[#answer + 1] = concat(group.events)
  answer[#answer + 1] = concat(group.children)
end
return { call('GET', KEYS[1]), kinds, answer, asked, concat(open) }

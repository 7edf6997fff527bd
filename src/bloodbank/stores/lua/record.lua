-- record: write events and their edges, whole or not at all; an event that is there already stays as it is.
-- The keys and values are described in docs/redis-layout.md.
--
-- KEYS[1], [2]  the format key, the table of generations. The others follow from the generation that is open now.
-- ARGV[1...3]   format that the caller writes, time to live in milliseconds, prefix of the keys with its colon
-- ARGV[4]       how many kinds follow: a kind is an event type and a source
-- ARGV[5...]    for each kind: type, source; then for each event: its id, the number of its kind (from 1), the first
--               part of its value (its parents) and the last (times, digest)
--
-- Returns the format found when it is another one, in which case nothing was written; otherwise false.

local EVENTS_A_BUCKET = 64 -- on average, when a generation is full; a hash is a listpack up to 128
local FIRST_BITS, MOST_BITS = 10, 24 -- buckets of a generation, as a power of two
local MOST_NAMES = 4096 -- different types and sources of a generation; others stand in the values as text
local SHORT = 64 -- bytes; a hash with a longer value is no listpack
local MANY = '+' -- in place of children that lie in a sorted set of their own

local call = redis.call
local found = call('GET', KEYS[1])
if found and found ~= ARGV[1] then
  return found
end

local ttl, prefix = tonumber(ARGV[2]), ARGV[3]
local time = call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)

-- Generations that have not expired; the newest of those with this time to live is the one to write to, or to follow.
local live, newest = {}, nil
local rows = call('HGETALL', KEYS[2])
for at = 1, #rows, 2 do
  local row_ttl, bits, stops, expires = string.match(rows[at + 1], '^(%d+) (%d+) (%d+) (%d+)$')
  if row_ttl then
    local row = { name = rows[at], bits = tonumber(bits), stops = tonumber(stops), expires = tonumber(expires) }
    if row.expires > now then
      live[#live + 1] = row
      if tonumber(row_ttl) == ttl and (not newest or row.stops > newest.stops) then
        newest = row
      end
    else
      call('HDEL', KEYS[2], row.name, row.name .. '#')
    end
  end
end

local function live_until(key, moment)
  if call('PTTL', key) < moment - now then
    call('PEXPIREAT', key, moment)
  end
end

local function open_generation(bits)
  local stops = now + math.max(1, math.floor(ttl / 4))
  local row = { name = time[1] .. string.format('%06d', tonumber(time[2])), bits = bits, stops = stops, expires = stops + ttl }
  while call('HEXISTS', KEYS[2], row.name) == 1 do
    row.name = row.name .. '_'
  end
  call('SET', KEYS[1], ARGV[1], 'NX')
  call('HSET', KEYS[2], row.name, string.format('%.0f %d %.0f %.0f', ttl, bits, stops, row.expires))
  live_until(KEYS[1], row.expires)
  live_until(KEYS[2], row.expires)
  live[#live + 1] = row
  return row
end

local current = newest
if not newest then
  current = open_generation(FIRST_BITS)
else
  local count = tonumber(call('HGET', KEYS[2], newest.name .. '#') or 0)
  if newest.stops <= now then
    local bits = 6
    while bits < MOST_BITS and count > EVENTS_A_BUCKET * 2 ^ bits do
      bits = bits + 1
    end
    current = open_generation(bits)
  elseif count >= EVENTS_A_BUCKET * 2 ^ newest.bits and newest.bits < MOST_BITS then
    current = open_generation(math.min(MOST_BITS, newest.bits + 2))
  end
end
if not found then
  call('SET', KEYS[1], ARGV[1], 'NX')
  live_until(KEYS[1], current.expires)
end

local function key_of(row, kind, id)
  return prefix .. row.name .. kind .. string.format('%x', struct.unpack('>I4', id, 13) % 2 ^ row.bits)
end

local names_key = prefix .. current.name .. ':n'
local touched = {}
local function keep(key)
  if not touched[key] then
    touched[key] = true
    call('PEXPIREAT', key, current.expires)
  end
end

local function number_of(name)
  local number = call('HGET', names_key, 't' .. name)
  if number then
    return struct.pack('>I2', number), ''
  end
  number = call('HLEN', names_key) / 2 + 1
  if number > MOST_NAMES then
    return '\0\0', struct.pack('>I2', #name) .. name
  end
  call('HSET', names_key, 't' .. name, number, 'n' .. number, name)
  keep(names_key)
  return struct.pack('>I2', number), ''
end

local function add_child(parent, child)
  local key = key_of(current, ':c:', parent)
  local children = call('HGET', key, parent)
  if children == MANY then
    call('ZADD', prefix .. current.name .. ':k:' .. parent, 0, child)
  elseif not children then
    call('HSET', key, parent, child)
    keep(key)
  elseif string.sub(children, -16) == child then
    return -- the event names this parent twice
  elseif #children < SHORT then
    call('HSET', key, parent, children .. child)
  else
    local many = prefix .. current.name .. ':k:' .. parent
    for at = 1, #children, 16 do
      call('ZADD', many, 0, string.sub(children, at, at + 15))
    end
    call('ZADD', many, 0, child)
    keep(many)
    call('HSET', key, parent, MANY)
  end
end

local kinds = {}
local first_event = 5 + 2 * tonumber(ARGV[4])
local function kind_of(number)
  if not kinds[number] then
    local type_number, type_text = number_of(ARGV[3 + 2 * number])
    local source_number, source_text = number_of(ARGV[4 + 2 * number])
    kinds[number] = type_number .. source_number .. type_text .. source_text
  end
  return kinds[number]
end

local function is_known(id)
  for _, row in ipairs(live) do
    if call('HEXISTS', key_of(row, ':e:', id), id) == 1 then
      return true
    end
  end
  return false
end

local added = 0
for at = first_event, #ARGV, 4 do
  local id = ARGV[at]
  if not is_known(id) then
    local parents = ARGV[at + 2]
    local value = parents .. kind_of(tonumber(ARGV[at + 1])) .. ARGV[at + 3]
    local key = key_of(current, ':e:', id)
    if #value > SHORT then
      local long = prefix .. current.name .. ':v:' .. id
      call('SET', long, value)
      keep(long)
      value = ''
    end
    call('HSET', key, id, value)
    keep(key)
    for parent = #parents % 16 + 1, #parents, 16 do
      add_child(string.sub(parents, parent, parent + 15), id)
    end
    added = added + 1
  end
end

if added > 0 then
  call('HINCRBY', KEYS[2], current.name .. '#', added)
end
return false

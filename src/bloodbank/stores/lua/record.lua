-- record: write events and their edges, whole or not at all; an event that is there already stays as it is.
-- The keys and values are described in docs/redis-layout.md.
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

local EVENTS_A_BUCKET = 64 -- on average, when a generation is full; a hash is a listpack up to 128
local FIRST_BITS, MOST_BITS = 10, 24 -- buckets of a generation, as a power of two
local MOST_NAMES = 4096 -- different types and sources of a generation; others stand in the values as text
local SHORT = 64 -- bytes; a hash with a longer value is no listpack
local MANY = '+' -- in place of children that lie in a sorted set of their own
local EVENT = '>c16I2I4c0I4c0'

local call, byte, sub, format = redis.call, string.byte, string.sub, string.format
local found = call('GET', KEYS[1])
if found and found ~= ARGV[1] then
  return found
end

local ttl, prefix, events = tonumber(ARGV[2]), ARGV[3], ARGV[4]
local time = call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)

-- Generations that have not expired; the newest of those with this time to live is the one to write to, or to follow.
local live, counts, newest = {}, {}, nil
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
  else
    counts[rows[at]] = tonumber(rows[at + 1])
  end
end

local function live_until(key, moment)
  if call('PTTL', key) < moment - now then
    call('PEXPIREAT', key, moment)
  end
end

local function open_generation(bits)
  local stops = now + math.max(1, math.floor(ttl / 4))
  local row = { name = time[1] .. format('%06d', tonumber(time[2])), bits = bits, stops = stops, expires = stops + ttl }
  while call('HEXISTS', KEYS[2], row.name) == 1 do
    row.name = row.name .. '_'
  end
  call('SET', KEYS[1], ARGV[1], 'NX')
  call('HSET', KEYS[2], row.name, format('%.0f %d %.0f %.0f', ttl, bits, stops, row.expires))
  live_until(KEYS[1], row.expires)
  live_until(KEYS[2], row.expires)
  live[#live + 1] = row
  return row
end

local current = newest
if not newest then
  current = open_generation(FIRST_BITS)
else
  local count = counts[newest.name .. '#'] or 0
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

local older = {}
for _, row in ipairs(live) do
  if row ~= current then
    older[#older + 1] = { base = prefix .. row.name .. ':e:', buckets = 2 ^ row.bits }
  end
end

-- The end of an id as a number: as much of it as there can be buckets.
local function place_of(id)
  local high, middle, low = byte(id, 14, 16)
  return high * 65536 + middle * 256 + low
end

-- All keys of a generation expire together, so that one which has its expiry needs none.
local expires = current.expires
local function keep(key)
  if call('PTTL', key) < 0 then
    call('PEXPIREAT', key, expires)
  end
end

local base, buckets = prefix .. current.name, 2 ^ current.bits
local names_key, many_base = base .. ':n', base .. ':k:'
local events_base, children_base = base .. ':e:', base .. ':c:'

local function number_of(name, number)
  if not number then
    number = call('HLEN', names_key) / 2 + 1
    if number > MOST_NAMES then
      return '\0\0', struct.pack('>I2', #name) .. name
    end
    -- Type and source may be the same word.
    if call('HSETNX', names_key, 't' .. name, number) == 0 then
      number = call('HGET', names_key, 't' .. name)
    else
      call('HSET', names_key, 'n' .. number, name)
      keep(names_key)
    end
  end
  return struct.pack('>I2', number), ''
end

local kinds = {}
local function kind_of(number)
  local event_type, source = ARGV[3 + 2 * number], ARGV[4 + 2 * number]
  local numbers = call('HMGET', names_key, 't' .. event_type, 't' .. source)
  local type_number, type_text = number_of(event_type, numbers[1])
  local source_number, source_text = number_of(source, numbers[2])
  local kind = type_number .. source_number .. type_text .. source_text
  kinds[number] = kind
  return kind
end

local function is_older(id, place)
  for number = 1, #older do
    local row = older[number]
    if call('HEXISTS', row.base .. format('%x', place % row.buckets), id) == 1 then
      return true
    end
  end
  return false
end

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
  local children = call('HGET', key, parent)
  if children ~= MANY and #(children or '') + 16 * #family <= SHORT then
    call('HSET', key, parent, (children or '') .. table.concat(family))
  else
    local many, members = many_base .. parent, {}
    if children ~= MANY then
      call('HSET', key, parent, MANY)
      for first = 1, #(children or ''), 16 do
        family[#family + 1] = sub(children, first, first + 15)
      end
    end
    for number, child in ipairs(family) do
      members[2 * number - 1], members[2 * number] = 0, child
    end
    call('ZADD', many, unpack(members))
    if children ~= MANY then
      keep(many)
    end
  end
  if not children then
    keep(key)
  end
end

if added > 0 then
  call('HINCRBY', KEYS[2], current.name .. '#', added)
end
return false

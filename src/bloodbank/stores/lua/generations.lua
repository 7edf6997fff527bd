-- generations: look at the format, and find or open the generation that is written to. Part of the scripts that write.
--
-- Expects from the part before: FIRST_BITS and LEAST_BITS, buckets of a generation as a power of two, in the first one
-- and at least; ALIGNED, whether generations stop at multiples of a quarter of the time to live, whoever opens them.
-- Leaves to the part behind: `found`, the format; `current` and its `base` and `buckets`; `older`, those that have not
-- expired; `place_of` and `keep`.

local EVENTS_A_BUCKET = 64 -- on average, when a generation is full; a hash is a listpack up to 128
local MOST_BITS = 24

local call, byte, sub, format = redis.call, string.byte, string.sub, string.format
local found = call('GET', KEYS[1])
if found and found ~= ARGV[1] then
  return found
end

local ttl, prefix = tonumber(ARGV[2]), ARGV[3]
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
      local is_newer = not newest or row.stops > newest.stops
      is_newer = is_newer or row.stops == newest.stops and row.name > newest.name
      if tonumber(row_ttl) == ttl and is_newer then
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
  local quarter = math.max(1, math.floor(ttl / 4))
  local stops = ALIGNED and (math.floor(now / quarter) + 1) * quarter or now + quarter
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
    local bits = LEAST_BITS
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
    older[#older + 1] = { base = prefix .. row.name, buckets = 2 ^ row.bits }
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

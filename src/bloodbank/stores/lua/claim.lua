-- claim: give events that nobody has recorded to one owner, until a lease ends.
-- The keys and values are described in docs/redis-layout.md.
--
-- KEYS[1], [2]  the format key, the table of generations. The others follow from them.
-- ARGV[1]       format that the caller knows
-- ARGV[2]       prefix of the keys with its colon
-- ARGV[3]       owner, after its length (1 byte)
-- ARGV[4]       lease in milliseconds
-- ARGV[5...]    for each event: its id, digest of its body
--
-- Returns the format found (or false), and of each event: 0 when the caller has it now; the milliseconds left and the
-- digest when another one has it; the value when it is recorded. Of another format only that is returned, and nothing
-- is written.

local call, byte = redis.call, string.byte
local found = call('GET', KEYS[1])
if found and found ~= ARGV[1] then
  return { found }
end

local prefix, owner, lease = ARGV[2], ARGV[3], ARGV[4]
local time = call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)

local live = {}
local rows = call('HGETALL', KEYS[2])
for at = 1, #rows, 2 do
  local bits, expires = string.match(rows[at + 1], '^%d+ (%d+) %d+ (%d+)$')
  if bits and tonumber(expires) > now then
    live[#live + 1] = { base = prefix .. rows[at], buckets = 2 ^ bits }
  end
end

local function recorded(id)
  local a, b, c, d = byte(id, 13, 16)
  local place = ((a * 256 + b) * 256 + c) * 256 + d
  for _, row in ipairs(live) do
    local value = call('HGET', row.base .. ':e:' .. string.format('%x', place % row.buckets), id)
    if value == '' then
      value = call('GET', row.base .. ':v:' .. id)
    end
    if value then
      return value
    end
  end
  return false
end

local answer = { found }
for at = 5, #ARGV, 2 do
  local id = ARGV[at]
  local value = recorded(id)
  if value then
    answer[#answer + 1] = value
  else
    local key = prefix .. 'claim:' .. id
    local held = call('GET', key)
    if held and string.sub(held, 1, #owner) ~= owner then
      answer[#answer + 1] = { call('PTTL', key), string.sub(held, byte(held) + 2) }
    else
      call('SET', key, owner .. ARGV[at + 1], 'PX', lease)
      answer[#answer + 1] = 0
    end
  end
end
return answer

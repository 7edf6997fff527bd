-- names: numbers for types and sources, those of the open generation. Part of the scripts that write events.
-- ARGV[5...]  for each kind: event type, source

local MOST_NAMES = 4096 -- different types and sources of a generation; others stand in the values as text

local names_key = base .. ':n'

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

-- remove_child: take an event from the children of one of its parents. Part of the scripts that forget.

local MANY = '+'

local call = redis.call

local function remove_child(base, bits, parent, child)
  local key = base .. ':c:' .. string.format('%x', struct.unpack('>I4', parent, 13) % 2 ^ bits)
  local children = call('HGET', key, parent)
  if children == MANY then
    local many = base .. ':k:' .. parent
    call('ZREM', many, child)
    if call('ZCARD', many) == 0 then
      call('HDEL', key, parent)
    end
  elseif children then
    local rest = {}
    for at = 1, #children, 16 do
      local other = string.sub(children, at, at + 15)
      if other ~= child then
        rest[#rest + 1] = other
      end
    end
    if #rest > 0 then
      call('HSET', key, parent, table.concat(rest))
    else
      call('HDEL', key, parent)
    end
  end
end

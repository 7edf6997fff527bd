-- children: add to the children of an event. Part of the scripts that write edges.

local SHORT = 64 -- bytes; a hash with a longer value is no listpack
local MANY = '+' -- in place of children that lie in a sorted set of their own

local many_base, children_base = base .. ':k:', base .. ':c:'

-- key, children: bucket of the parent, and what it holds for it. family: ids to add, none of which it has yet, unless
-- they are many; is changed.
local function add_children(key, parent, children, family)
  if children ~= MANY and #(children or '') + 16 * #family <= SHORT then
    call('HSET', key, parent, (children or '') .. table.concat(family))
  else
    local many, members = many_base .. parent, {}
    if children ~= MANY then
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
      call('HSET', key, parent, MANY)
    end
  end
  if not children then
    keep(key)
  end
end

-- one_server: generations of an index that lies in one piece.

local FIRST_BITS, LEAST_BITS, ALIGNED = 10, 6, false

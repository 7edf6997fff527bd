-- shard: generations of one of the shards of an index in a cluster. Each holds its part of the events, so that it needs
-- fewer buckets. All shards stop together: an edge, which lies with the parent, expires with the event, which may not.

local FIRST_BITS, LEAST_BITS, ALIGNED = 4, 0, true

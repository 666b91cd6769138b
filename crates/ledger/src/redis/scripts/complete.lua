-- Marks a partition as one of a ledger that is complete, because its first partition, which is made last, exists.
--
-- KEYS: meta. ARGV: the ledger's id. Returns the number of new fields.

if redis.call('HGET', KEYS[1], 'ledger') ~= ARGV[1] then return 0 end
redis.call('HDEL', KEYS[1], 'finishing')
return redis.call('HSET', KEYS[1], 'complete', '1')

-- Marks a place for a copy of a ledger: what there is of it has no epoch, so that it is none yet.
--
-- KEYS: meta. ARGV: the copy's token, number of buckets.

if redis.call('EXISTS', KEYS[1]) == 1 then return redis.error_reply('EXISTS a ledger') end
return redis.call('HSET', KEYS[1], 'copying', ARGV[1], 'buckets', ARGV[2])

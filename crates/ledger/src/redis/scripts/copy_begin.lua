-- Reserves the keys for a copy of a ledger. A copy that is being written has a token and no epoch, so it is
-- not yet a ledger.
--
-- KEYS: meta. ARGV: the copy's token, number of buckets.

if redis.call('EXISTS', KEYS[1]) == 1 then return redis.error_reply('EXISTS a ledger') end
return redis.call('HSET', KEYS[1], 'copying', ARGV[1], 'buckets', ARGV[2])

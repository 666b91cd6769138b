-- Replaces a field of a bucket, if it still has the value that was read (compare-and-set).
--
-- KEYS: meta, a bucket. ARGV: epoch, field, old value, new value (empty: deletes the field).
-- Returns 1 if it was replaced, otherwise 0.

local epoch = redis.call('HGET', KEYS[1], 'epoch')
if not epoch then return redis.error_reply('NOEPOCH there is no ledger') end
if epoch ~= ARGV[1] then return redis.error_reply('BADEPOCH another ledger is there') end
if redis.call('HGET', KEYS[2], ARGV[2]) ~= ARGV[3] then return 0 end
if ARGV[4] == '' then
  redis.call('HDEL', KEYS[2], ARGV[2])
else
  redis.call('HSET', KEYS[2], ARGV[2], ARGV[4])
end
return 1

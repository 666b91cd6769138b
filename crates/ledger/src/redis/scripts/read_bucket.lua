-- Reads a bucket, and what it is to be labelled with.
--
-- KEYS: meta, bucket. Answers {epoch, rev, head, {field, value, ...}}.

local known = redis.call('HMGET', KEYS[1], 'epoch', 'rev', 'head')
if not known[1] then return redis.error_reply('NOEPOCH there is no ledger') end
return {known[1], known[2], known[3], redis.call('HGETALL', KEYS[2])}

-- Reads a bucket together with its label: the position of the log at which it was read.
--
-- KEYS: meta, bucket. Returns {epoch, rev, head, {field, value, ...}}.

local known = redis.call('HMGET', KEYS[1], 'epoch', 'rev', 'head')
if not known[1] then return redis.error_reply('NOEPOCH there is no ledger') end
return {known[1], known[2], known[3], redis.call('HGETALL', KEYS[2])}

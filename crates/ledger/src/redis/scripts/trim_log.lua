-- Removes the log entries before a revision.
--
-- KEYS: meta, log. ARGV: epoch, revision. Returns the number of removed entries.

local epoch = redis.call('HGET', KEYS[1], 'epoch')
if not epoch then return redis.error_reply('NOEPOCH there is no ledger') end
if epoch ~= ARGV[1] then return redis.error_reply('BADEPOCH another ledger is there') end
return redis.call('XTRIM', KEYS[2], 'MINID', ARGV[2])

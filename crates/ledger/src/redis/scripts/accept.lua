-- Counts that an operator has accepted the ledger as it is, whatever followers remember of it.
--
-- KEYS: meta. ARGV: epoch. Answers how often by now.

local epoch = redis.call('HGET', KEYS[1], 'epoch')
if not epoch then return redis.error_reply('NOEPOCH there is no ledger') end
if epoch ~= ARGV[1] then return redis.error_reply('BADEPOCH another ledger is there') end
return redis.call('HINCRBY', KEYS[1], 'accepted', 1)

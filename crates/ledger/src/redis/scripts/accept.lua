-- Counts an operator's acceptance of the ledger as it is: followers drop their retained denials.
--
-- KEYS: meta. ARGV: epoch. Returns how often the ledger has been accepted.

local epoch = redis.call('HGET', KEYS[1], 'epoch')
if not epoch then return redis.error_reply('NOEPOCH there is no ledger') end
if epoch ~= ARGV[1] then return redis.error_reply('BADEPOCH another ledger is there') end
return redis.call('HINCRBY', KEYS[1], 'accepted', 1)

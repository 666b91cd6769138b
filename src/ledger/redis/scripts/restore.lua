-- Puts back what every ledger has beside its content: the fence, and a hash's sentinel field.
--
-- KEYS: meta, fence or nothing of it, then hashes. ARGV: epoch, sentinel field.
-- Answers how many were put back.

local epoch = redis.call('HGET', KEYS[1], 'epoch')
if not epoch then return redis.error_reply('NOEPOCH there is no ledger') end
if epoch ~= ARGV[1] then return redis.error_reply('BADEPOCH another ledger is there') end
local restored = redis.call('SETNX', KEYS[2], '1')
for n = 3, #KEYS do restored = restored + redis.call('HSETNX', KEYS[n], ARGV[2], '') end
return restored

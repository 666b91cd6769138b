-- Puts back what every ledger has beside its content: the fence, the log, and a hash's sentinel
-- field, by which the hash counts as whole from then on.
--
-- KEYS: meta, fence, log, then hashes. ARGV: epoch, revision, sentinel field, its value: empty where
-- all is there that should be. A log is made where it is missing, and the ledger ends there.
-- Answers how many were put back.

local known = redis.call('HMGET', KEYS[1], 'epoch', 'rev')
if not known[1] then return redis.error_reply('NOEPOCH there is no ledger') end
if known[1] ~= ARGV[1] then return redis.error_reply('BADEPOCH another ledger is there') end
local restored = redis.call('SETNX', KEYS[2], '1')
if known[2] == ARGV[2] and redis.call('EXISTS', KEYS[3]) == 0 then
  -- Without entries, and with room for the next one: Redis takes no id 0-0.
  local id = known[2] == '0' and '0-1' or known[2] .. '-0'
  redis.call('XADD', KEYS[3], id, 'p', '')
  redis.call('XDEL', KEYS[3], id)
  restored = restored + 1
end
for n = 4, #KEYS do restored = restored + redis.call('HSETNX', KEYS[n], ARGV[3], ARGV[4]) end
return restored

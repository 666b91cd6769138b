-- Recreates what every ledger has besides its content: the fence, the log, and the sentinel field of a
-- hash. From then on that hash counts as complete.
--
-- KEYS: meta, fence, log, then hashes. ARGV: epoch, revision, sentinel field, its value (`incomplete` for
-- histories that could not be rebuilt, otherwise empty). A missing log is created, empty, if the ledger
-- still ends at that revision. Returns the number of recreated keys and fields.

local known = redis.call('HMGET', KEYS[1], 'epoch', 'rev')
if not known[1] then return redis.error_reply('NOEPOCH there is no ledger') end
if known[1] ~= ARGV[1] then return redis.error_reply('BADEPOCH another ledger is there') end
local restored = redis.call('SETNX', KEYS[2], '1')
if known[2] == ARGV[2] and redis.call('EXISTS', KEYS[3]) == 0 then
  -- An empty stream whose last id is the ledger's revision. Redis does not allow the id 0-0.
  local id = known[2] == '0' and '0-1' or known[2] .. '-0'
  redis.call('XADD', KEYS[3], id, 'p', '')
  redis.call('XDEL', KEYS[3], id)
  restored = restored + 1
end
for n = 4, #KEYS do restored = restored + redis.call('HSETNX', KEYS[n], ARGV[3], ARGV[4]) end
return restored

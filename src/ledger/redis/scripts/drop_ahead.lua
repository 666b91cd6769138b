-- Removes the log's entries behind `rev` that do not continue the ledger: nobody was told of them.
--
-- KEYS: meta, log. ARGV: epoch, revision, most entries. Answers how many were removed.

local known = redis.call('HMGET', KEYS[1], 'epoch', 'rev')
if not known[1] then return redis.error_reply('NOEPOCH there is no ledger') end
if known[1] ~= ARGV[1] then return redis.error_reply('BADEPOCH another ledger is there') end
if known[2] ~= ARGV[2] then return 0 end
local ahead = redis.call('XRANGE', KEYS[2], '(' .. ARGV[2] .. '-0', '+', 'COUNT', ARGV[3])
for _, entry in ipairs(ahead) do redis.call('XDEL', KEYS[2], entry[1]) end
-- Else Redis would refuse the ids that come next, as smaller than one that was there.
local last = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
if not last or tonumber(string.match(last[1], '^%d+')) <= tonumber(known[2]) then
  redis.call('XSETID', KEYS[2], ARGV[2] .. '-0', 'ENTRIESADDED', ARGV[2], 'MAXDELETEDID', '0-1')
end
return #ahead

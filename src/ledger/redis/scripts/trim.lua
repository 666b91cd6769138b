-- Removes the log's entries before a revision, if this is still that ledger.
--
-- Never the last one: whoever has read up to it finds by it that what comes next continues it.
--
-- KEYS: meta, log. ARGV: epoch, revision. Answers how many were removed.

local known = redis.call('HMGET', KEYS[1], 'epoch', 'rev')
if not known[1] then return redis.error_reply('NOEPOCH there is no ledger') end
if known[1] ~= ARGV[1] then return redis.error_reply('BADEPOCH another ledger is there') end
local before = math.min(tonumber(ARGV[2]), tonumber(known[2]))
return redis.call('XTRIM', KEYS[2], 'MINID', string.format('%.0f', before))

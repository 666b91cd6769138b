-- Removes the log's entries before a revision, if this is still that ledger.
--
-- The last one is kept where that is asked for: whoever has read up to it finds by it that what
-- comes next continues it. A log that is damaged up to its end is removed whole.
--
-- KEYS: meta, log. ARGV: epoch, revision, 1 to keep the last one. Answers how many were removed.

local known = redis.call('HMGET', KEYS[1], 'epoch', 'rev')
if not known[1] then return redis.error_reply('NOEPOCH there is no ledger') end
if known[1] ~= ARGV[1] then return redis.error_reply('BADEPOCH another ledger is there') end
local before = tonumber(ARGV[2])
if ARGV[3] == '1' then before = math.min(before, tonumber(known[2])) end
return redis.call('XTRIM', KEYS[2], 'MINID', string.format('%.0f', before))

-- Completes an append that failed half-way: writes the buckets from the log entries after `rev`.
--
-- The caller has read these entries, and declares their buckets in KEYS. If the log has other entries by
-- now, the script answers BEHIND and the caller reads again. The script is idempotent: all that it writes
-- is determined by the log, and `rev` comes last, so a failed run is simply repeated.
--
-- A bucket that was deleted or evicted, and therefore has no sentinel field, is only recreated by a repair,
-- which adds the sentinel field at its end.
--
-- KEYS: meta, log, then the buckets. ARGV: epoch, channel, maximum number of entries, 1 if this is a
-- repair, PUBLISH or SPUBLISH, then the buckets' numbers. Returns the number of completed entries.

local meta, log = KEYS[1], KEYS[2]
local pack = struct.pack
local known = redis.call('HMGET', meta, 'epoch', 'rev', 'head')
if not known[1] then return redis.error_reply('NOEPOCH there is no ledger') end
if known[1] ~= ARGV[1] then return redis.error_reply('BADEPOCH another ledger is there') end
local rev, head = tonumber(known[2]), known[3]
local keys = {}
for n = 6, #ARGV do
  keys[ARGV[n]] = KEYS[n - 3]
  if ARGV[4] ~= '1' and redis.call('HEXISTS', KEYS[n - 3], '.') == 0 then
    return redis.error_reply('LOST ' .. KEYS[n - 3])
  end
end

local entries = redis.call('XRANGE', log, string.format('%.0f', rev + 1), '+', 'COUNT', ARGV[3])
local first, before, bodies = rev + 1, head, {}
for _, entry in ipairs(entries) do
  local place, body, after = entry[2][2], entry[2][4], entry[2][6]
  local bucket, from_key, from, length = struct.unpack('>I4I1I4I4', place)
  local key = keys[string.format('%.0f', bucket)]
  if not key then return redis.error_reply('BEHIND an append was cut short') end
  rev = rev + 1
  local number = pack('>I8', rev)
  local hash = redis.sha1hex(head .. number .. body)
  head = pack('>I4I4I4I4I4',
    tonumber(string.sub(hash, 1, 8), 16), tonumber(string.sub(hash, 9, 16), 16),
    tonumber(string.sub(hash, 17, 24), 16), tonumber(string.sub(hash, 25, 32), 16),
    tonumber(string.sub(hash, 33, 40), 16))
  if entry[1] ~= string.format('%.0f-0', rev) or head ~= after then
    return redis.error_reply('BADLOG the log does not continue the ledger')
  end
  redis.call('HSET', key, string.sub(body, from_key + 1, from_key + 16),
    number .. string.sub(head, 1, 8) .. string.sub(body, from + 1, from + length))
  bodies[#bodies + 1] = pack('>I4', #body)
  bodies[#bodies + 1] = body
end
if rev < first then return 0 end
redis.call('HSET', meta, 'rev', string.format('%.0f', rev), 'head', head)
redis.pcall(ARGV[5], ARGV[2], ARGV[1] .. pack('>I8', first) .. before .. table.concat(bodies))
return rev - first + 1

-- Completes an append that was cut short: writes the buckets of the log's entries behind `rev`.
-- Whoever asks has read those entries, and declares their buckets; where there are others by now,
-- it is told to read again. Cut short itself, it begins anew: all that it writes is what the log
-- says, and `rev` comes last.
--
-- A bucket that was deleted or evicted, and so has no sentinel field, is not made anew, but by a
-- repair, which puts that field back in the end.
--
-- KEYS: meta, log, then the buckets. ARGV: epoch, channel, most entries, whether this is a repair
-- (1), then the buckets' numbers.

local meta, log = KEYS[1], KEYS[2]
local pack = struct.pack
local known = redis.call('HMGET', meta, 'epoch', 'rev', 'head')
if not known[1] then return redis.error_reply('NOEPOCH there is no ledger') end
if known[1] ~= ARGV[1] then return redis.error_reply('BADEPOCH another ledger is there') end
local rev, head = tonumber(known[2]), known[3]
local keys = {}
for n = 5, #ARGV do
  keys[ARGV[n]] = KEYS[n - 2]
  if ARGV[4] ~= '1' and redis.call('HEXISTS', KEYS[n - 2], '.') == 0 then
    return redis.error_reply('LOST ' .. KEYS[n - 2])
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
redis.pcall('PUBLISH', ARGV[2], ARGV[1] .. pack('>I8', first) .. before .. table.concat(bodies))
return rev - first + 1

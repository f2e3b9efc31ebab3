-- wrk -s wrk.lua URL -- METHOD BODY: sends that, and prints what was measured as JSON in the last line.
function init(arguments)
   wrk.method = arguments[1]
   if arguments[2] ~= nil and arguments[2] ~= "" then
      wrk.body = arguments[2]
      wrk.headers["content-type"] = "application/json"
   end
   local authorization = os.getenv("PERF_AUTHORIZATION")
   if authorization ~= nil then
      wrk.headers["authorization"] = authorization
   end
end

function done(summary, latency, requests)
   local errors = summary.errors
   io.write(string.format(
      '{"finished":%d,"seconds":%.6f,"p50":%.4f,"p99":%.4f,"p999":%.4f,"failed":%d}\n',
      summary.requests, summary.duration / 1e6,
      latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, latency:percentile(99.9) / 1e3,
      errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end

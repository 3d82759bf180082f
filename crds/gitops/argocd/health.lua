-- What Argo CD shows of a FunctionCallFineTune. None of Lua's libraries is used: Argo CD loads hardly any for such a check.
local status = obj.status or {}
local conditions = {}
for _, condition in ipairs(status.conditions or {}) do
  conditions[condition.type] = condition
end

local function holds(kind)
  return conditions[kind] ~= nil and conditions[kind].status == "True"
end

local function told(kind)
  local condition = conditions[kind] or {}
  return (condition.reason or kind) .. ": " .. (condition.message or "")
end

-- The model that was published last stays where it is, whatever becomes of the next one.
local stays = ""
if status.published ~= nil then
  stays = " " .. status.published.repository .. " stays as it was published before."
end

if status.observedGeneration ~= obj.metadata.generation then
  return { status = "Progressing", message = "The operator has not seen this version of the manifest yet." .. stays }
end
if holds("Stalled") then
  local remedy = status.failure ~= nil and status.failure.remedy or ""
  return { status = "Degraded", message = told("Stalled") .. ". " .. remedy .. stays }
end
if (obj.spec or {}).suspend == true and holds("Suspended") then
  return { status = "Suspended", message = "spec.suspend is true: remove it to go on." .. stays }
end
if holds("Ready") and not holds("Reconciling") then
  return { status = "Healthy", message = told("Ready") }
end
local message = told("Reconciling")
if (status.progress or "") ~= "" then
  message = message .. ", " .. status.progress
end
if (status.eta or "") ~= "" then
  message = message .. ", " .. status.eta .. " left"
end
return { status = "Progressing", message = message .. "." .. stays }

-- Health check of Argo CD for FunctionCallFineTunes. It uses no Lua libraries, because Argo CD loads few of them.
local status = obj.status or {}
local conditions = {}
for _, condition in ipairs(status.conditions or {}) do
  conditions[condition.type] = condition
end

local function holds(kind)
  return conditions[kind] ~= nil and conditions[kind].status == "True"
end

local function condition_text(kind)
  local condition = conditions[kind] or {}
  return (condition.reason or kind) .. ": " .. (condition.message or "")
end

-- The published model stays available during the next run.
local stays = ""
if status.published ~= nil then
  stays = " " .. status.published.repository .. " stays published."
end

if status.observedGeneration ~= obj.metadata.generation then
  return { status = "Progressing", message = "The operator has not seen this version of the manifest yet." .. stays }
end
if holds("Stalled") then
  local remedy = status.failure ~= nil and status.failure.remedy or ""
  return { status = "Degraded", message = condition_text("Stalled") .. ". " .. remedy .. stays }
end
if (obj.spec or {}).suspend == true and holds("Suspended") then
  return { status = "Suspended", message = "spec.suspend is true: remove it to continue." .. stays }
end
if holds("Ready") and not holds("Reconciling") then
  return { status = "Healthy", message = condition_text("Ready") }
end
local message = condition_text("Reconciling")
if (status.progress or "") ~= "" then
  message = message .. ", " .. status.progress
end
if (status.eta or "") ~= "" then
  message = message .. ", " .. status.eta .. " left"
end
return { status = "Progressing", message = message .. "." .. stays }

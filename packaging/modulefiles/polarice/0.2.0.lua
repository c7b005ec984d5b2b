-- Lmod's module file of Polarice. Where it is installed: ROOT, a virtual environment that all nodes see.
-- Copy it to a folder of MODULEPATH as polarice/0.2.0.lua, and set `root`.
local root = os.getenv("POLARICE_ROOT") or "/opt/polarice/0.2.0"

help([[
Polarice: single-particle cryo-EM in polar harmonics, from movies to class averages and maps.
To begin with: polarice doctor; polarice example first; polarice run first/workflow.toml
]])
whatis("Name: polarice")
whatis("Version: 0.2.0")
whatis("Description: single-particle cryo-EM, from movies to class averages and maps")

if not isFile(pathJoin(root, "bin", "polarice")) then
  LmodError("no polarice in " .. root .. "; set root in " .. myFileName())
end
conflict("polarice")
setenv("POLARICE_ROOT", root)
prepend_path("PATH", pathJoin(root, "bin"))

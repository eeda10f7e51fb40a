package compat

const (
	noRuntime = "the message names runc, which is not here; what comes after it is the same"
	later     = "later versions of Docker word it as here"
)

// known is why some checks differ: by judge, by check.
var known = map[string]map[string]string{
	"dockerd 20.10": {
		"a command that is not there":    noRuntime,
		"a command that is a folder":     noRuntime + ", but that it is a folder is said",
		"no image to look at":            later,
		"no image to save":               "the message is another; the exit code is the same",
		"too little memory":              "a virtual machine has a kernel of its own, which needs more",
		"too few CPUs":                   "dockerd 20.10 takes less than it says it takes",
		"bad restart policy":             later,
		"created, its policies":          "the network default is called bridge, as in later versions",
		"created, killed":                later,
		"exited, killed":                 later,
		"running, removed":               later,
		"running, exec of nothing there": "the exit code is 127, as in later versions",
		"running, exec of a folder":      noRuntime + ", but that it is a folder is said",
		"running, exec in no folder":     "the exit code is 127, as for a command that is not there",
		"build, an unknown instruction":  later,
		"build, here-document":           "dockerd 20.10 does not know them, and takes their lines for instructions",
		"network of a bad driver":        later,
		"network of another's subnet":    later,
	},
	"Docker's description of its API": {
		"GET /system/df":             volumeStatus,
		"GET /system/df?type=volume": volumeStatus,
		"GET /volumes":               volumeStatus,
		"GET /volumes/swaggervol":    volumeStatus,
	},
}

const (
	volumeStatus = "a volume's status has its capacity as text; the description wants objects, and drivers give what they want"
)

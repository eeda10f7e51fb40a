package api

import (
	"fmt"
	"strings"
	"time"

	"github.com/docker/go-units"

	"vic/containervm"
)

// statusText is a container's state as docker ps prints it: "Up 3 minutes", "Exited (1) 2 hours ago".
func statusText(st containervm.State, now time.Time) string {
	switch st.Status {
	case containervm.Created:
		return "Created"
	case containervm.Running:
		up := "Up " + units.HumanDuration(now.Sub(st.Started))
		switch h := healthStatus(st.Health); h {
		case "starting":
			up += " (health: starting)"
		case "healthy", "unhealthy":
			up += " (" + h + ")"
		}
		return up
	case containervm.Paused:
		return "Up " + units.HumanDuration(now.Sub(st.Started)) + " (Paused)"
	case containervm.Restarting:
		return fmt.Sprintf("Restarting (%d) %s ago", st.ExitCode, units.HumanDuration(now.Sub(st.Finished)))
	case containervm.Exited:
		if st.Finished.IsZero() {
			return fmt.Sprintf("Exited (%d)", st.ExitCode)
		}
		return fmt.Sprintf("Exited (%d) %s ago", st.ExitCode, units.HumanDuration(now.Sub(st.Finished)))
	case containervm.Removing:
		return "Removal In Progress"
	}
	return "Dead"
}

// commandText is a command as docker ps prints it.
func commandText(args []string) string {
	words := make([]string, len(args))
	for i, a := range args {
		words[i] = a
		if i > 0 && strings.Contains(a, " ") {
			words[i] = "'" + a + "'"
		}
	}
	return strings.Join(words, " ")
}

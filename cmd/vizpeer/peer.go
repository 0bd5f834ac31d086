package main

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"vizpeer/authz"
	"vizpeer/lease"
	"vizpeer/peer/httpapi"
)

func (c *cli) peerCommand() *cobra.Command {
	return c.group(&cobra.Command{Use: "peer", Short: "The machines of the farm"}, c.peerLs(), c.peerShow(), c.peerDrain(), c.peerLabel(), c.peerRevoke(), c.peerApprove(), c.peerDeny())
}

func (c *cli) peerLs() *cobra.Command {
	var pending bool
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List the farm's machines",
		Args:  takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if pending {
				return c.pendingTable(cmd.Context())
			}
			cl, err := c.client()
			if err != nil {
				return err
			}
			peers, err := cl.peers(cmd.Context())
			if err != nil {
				return err
			}
			return c.print(orEmpty(peers), func() {
				slices.SortStableFunc(peers, func(a, b httpapi.Peer) int { return cmp.Compare(a.Name, b.Name) })
				rows := make([][]any, len(peers))
				for i, p := range peers {
					seen := ""
					if p.LastSeen != nil {
						seen = ago(*p.LastSeen, time.Now())
					}
					machine, blender := capabilityText(p.Capability)
					state := p.State
					if p.Full != "" {
						state += ", full"
					}
					if p.Drained != "" && p.State == "offline" {
						state += ", drained"
					}
					rows[i] = []any{p.Name, p.ID.Short(), state, strings.Join(p.Roles, ","), fmt.Sprintf("%d/%d", p.Busy, p.Slots), p.TasksDone, machine, blender, strings.Join(labelsOf(p), ", "), versionText(p), seen}
				}
				c.table([]string{"NAME", "ID", "STATE", "ROLES", "SLOTS", "DONE", "MACHINE", "BLENDER", "LABELS", "VERSION", "SEEN"}, rows)
				for _, p := range peers {
					if p.Drained != "" {
						fmt.Fprintf(c.out, "%s is drained: %s\n", plain(p.Name), plain(p.Drained))
					}
				}
			})
		},
	}
	cmd.Flags().BoolVar(&pending, "pending", false, "list the machines without a ticket that wait to be let in instead, for admins")
	return cmd
}

func (c *cli) peerShow() *cobra.Command {
	return &cobra.Command{
		Use:   "show NAME|ID",
		Short: "Show one machine: what it can do, what it does, why it takes no work",
		Args:  takes("NAME|ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, p, err := c.machine(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return c.print(p, func() { c.showPeer(p, cl.names(cmd.Context())) })
		},
	}
}

func (c *cli) peerDrain() *cobra.Command {
	var off bool
	cmd := &cobra.Command{
		Use:   "drain NAME|ID",
		Short: "Let a machine finish what it has and take no more work",
		Long: `Let a machine finish what it has and take no more work, until --off. The farm does so by
itself with a machine that failed three jobs in a row: see why with "vizpeer peer show NAME".`,
		Args: takes("NAME|ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, p, err := c.machine(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			verb := "drain"
			if off {
				verb = "undrain"
			}
			if p, err = cl.manage(cmd.Context(), http.MethodPost, p.ID, verb, nil); err != nil {
				return err
			}
			return c.print(p, func() {
				switch {
				case off && p.Full != "":
					fmt.Fprintf(c.out, "%s is not drained any more, but takes no work: %s\n", plain(p.Name), plain(p.Full))
				case off:
					fmt.Fprintf(c.out, "%s takes work again\n", plain(p.Name))
				case p.Busy > 0:
					fmt.Fprintf(c.out, "%s is drained: it finishes %s and takes no more work\n", plain(p.Name), count(p.Busy, "task"))
				default:
					fmt.Fprintf(c.out, "%s is drained: it takes no more work\n", plain(p.Name))
				}
			})
		},
	}
	cmd.Flags().BoolVar(&off, "off", false, "let it take work again")
	return cmd
}

func (c *cli) peerLabel() *cobra.Command {
	var remove bool
	cmd := &cobra.Command{
		Use:   "label NAME|ID [LABEL...]",
		Short: "Grant labels to a machine, or list those it has",
		Long: `Grant labels to a machine, as an admin, or list those it has. A machine may give itself
plain labels with "vizpeer up --label"; "calibrated" and every label with a colon, which may
mean a licence, count only where they are granted here.`,
		Example: `  vizpeer peer label box1 lic:keyshot
  vizpeer peer label box1 lic:keyshot --remove
  vizpeer peer label box1`,
		Args: takes("NAME|ID", "[LABEL...]"),
		RunE: func(cmd *cobra.Command, args []string) error {
			labels := args[1:]
			for _, l := range labels {
				if err := authz.CheckLabel(l); err != nil {
					return &usageError{err}
				}
			}
			if remove && len(labels) == 0 {
				return usagef("--remove takes the labels to be taken back: %s", cmd.UseLine())
			}
			cl, p, err := c.machine(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if len(labels) > 0 {
				granted := append(slices.Clone(p.Granted), labels...)
				if remove {
					if granted, err = without(p, labels); err != nil {
						return err
					}
				}
				if p, err = cl.manage(cmd.Context(), http.MethodPut, p.ID, "labels", httpapi.Labels{Labels: granted}); err != nil {
					return err
				}
			}
			return c.print(p, func() { c.showLabels(p) })
		},
	}
	cmd.Flags().BoolVar(&remove, "remove", false, "take the labels back")
	return cmd
}

// without lists the labels that p is granted less some, all of which it must have.
func without(p httpapi.Peer, labels []string) ([]string, error) {
	for _, l := range labels {
		switch {
		case slices.Contains(p.Granted, l):
		case slices.Contains(labelsOf(p), l):
			return nil, notFoundf("%s gives the label %s to itself: take it out of its config.toml, or of its --label", plain(p.Name), l)
		default:
			return nil, notFoundf("%s does not have the label %s: vizpeer peer label %s", plain(p.Name), l, plain(p.Name))
		}
	}
	return slices.DeleteFunc(slices.Clone(p.Granted), func(l string) bool { return slices.Contains(labels, l) }), nil
}

// labelsOf lists the labels that count on p.
func labelsOf(p httpapi.Peer) []string {
	if p.Capability == nil { // it was not heard of yet
		return p.Granted
	}
	return p.Capability.Labels
}

func (c *cli) showLabels(p httpapi.Peer) {
	var rows [][]any
	for _, l := range labelsOf(p) {
		from := "the machine itself"
		if slices.Contains(p.Granted, l) {
			from = "an admin"
		}
		rows = append(rows, []any{l, from})
	}
	if len(rows) == 0 {
		fmt.Fprintf(c.out, "%s has no labels\n", plain(p.Name))
		return
	}
	c.table([]string{"LABEL", "GIVEN BY"}, rows)
}

// machine finds the one machine of that name, ID or end of an ID, and a client to
// ask more about it.
func (c *cli) machine(ctx context.Context, name string) (*client, httpapi.Peer, error) {
	cl, err := c.client()
	if err != nil {
		return nil, httpapi.Peer{}, err
	}
	peers, err := cl.peers(ctx)
	if err != nil {
		return nil, httpapi.Peer{}, err
	}
	p, err := machineNamed(peers, name)
	return cl, p, err
}

// machineNamed finds the one machine of that name, ID or end of an ID.
func machineNamed(peers []httpapi.Peer, name string) (p httpapi.Peer, err error) {
	var found []httpapi.Peer
	for _, p := range peers {
		if p.Name == name || string(p.ID) == name || p.ID.Short() == name {
			found = append(found, p)
		}
	}
	switch len(found) {
	case 0:
		return p, notFoundf("there is no machine %s here, or it is not yours to see: vizpeer peer ls", plain(name))
	case 1:
		return found[0], nil
	}
	return p, usagef("%d machines are called %s: give the ID of one: vizpeer peer ls", len(found), plain(name))
}

func (c *cli) showPeer(p httpapi.Peer, names map[authz.PeerID]string) {
	machine, _ := capabilityText(p.Capability)
	var seen, disk, sandbox, system, gpus, blender string
	if p.LastSeen != nil {
		seen = ago(*p.LastSeen, time.Now())
	}
	if can := p.Capability; can != nil {
		disk = bytesText(can.FreeDisk) + " free"
		if can.Room != nil {
			disk += fmt.Sprintf(", its store can take %s", bytesText(*can.Room))
		}
		system, gpus = can.OS+"/"+can.Arch, gpusText(can.GPUs)
		builds := make([]string, len(can.Builds))
		for i, b := range can.Builds {
			builds[i] = buildText(b)
		}
		if blender = strings.Join(builds, "; "); can.Fetches {
			blender = cmp.Or(blender, "none yet") + "; takes what the farm offers"
		}
		if sandbox = can.Sandbox; sandbox == "" {
			sandbox = "none: Blender runs unconfined there"
		}
	}
	c.facts("machine", p.Name, "id", p.ID, "state", p.State, "drained", p.Drained, "takes no work", p.Full, "roles", strings.Join(p.Roles, ", "),
		"rendering", fmt.Sprintf("%d of %d slots", p.Busy, p.Slots), "slots", devicesText(p.Capability), "tasks done", p.TasksDone, "system", system, "hardware", machine, "gpus", gpus,
		"blender", blender, "sandbox", sandbox, "labels", strings.Join(labelsOf(p), ", "), "disk", disk, "connection", connectionText(p, names), "addresses", strings.Join(p.Addrs, ", "), "version", versionText(p), "last seen", seen)
}

// connectionText says how the leader is connected with a machine, and how other networks
// reach it.
func connectionText(p httpapi.Peer, names map[authz.PeerID]string) string {
	var words []string
	switch {
	case p.State == "offline":
	case p.Via != "":
		words = append(words, "with the leader through "+machineText(names, p.Via))
	default:
		words = append(words, "with the leader directly")
	}
	if can := p.Capability; can != nil {
		switch can.Reach {
		case lease.ReachPublic:
			words = append(words, "other networks reach it")
		case lease.ReachNAT:
			words = append(words, "behind a router")
		}
		if can.Relays {
			words = append(words, "it relays for others")
		}
	}
	return strings.Join(words, "; ")
}

func capabilityText(cap *lease.Capability) (machine, blender string) {
	if cap == nil {
		return "", ""
	}
	parts := []string{fmt.Sprintf("%d cores", cap.Cores), bytesText(cap.RAM)}
	for _, g := range cap.GPUs {
		parts = append(parts, g.Model)
	}
	builds := make([]string, len(cap.Builds))
	for i, b := range cap.Builds {
		if builds[i] = b.Version.String(); b.Name != "Blender" {
			builds[i] = b.Name + " " + builds[i]
		}
	}
	return strings.Join(parts, ", "), strings.Join(builds, ", ")
}

// buildText says what a Blender is and can do.
func buildText(b lease.Build) string {
	var can []string
	if b.Hash != "" {
		can = append(can, "build "+b.Hash)
	}
	can = append(can, b.Engines...)
	for _, backend := range b.Backends {
		can = append(can, string(backend))
	}
	if b.OIDN {
		can = append(can, "OpenImageDenoise")
	}
	if len(can) == 0 {
		return fmt.Sprintf("%s %s", b.Name, b.Version)
	}
	return fmt.Sprintf("%s %s (%s)", b.Name, b.Version, strings.Join(can, ", "))
}

// gpusText says what GPUs are: "RTX 3090, 24.0 GiB, driver 550.54.15 (OPTIX, CUDA)".
func gpusText(gpus []lease.GPU) string {
	words := make([]string, len(gpus))
	for i, g := range gpus {
		words[i] = g.Model
		if g.VRAM > 0 {
			words[i] += ", " + bytesText(g.VRAM)
		}
		if g.Driver != "" {
			words[i] += ", driver " + g.Driver
		}
		if len(g.Backends) > 0 {
			backends := make([]string, len(g.Backends))
			for k, b := range g.Backends {
				backends[k] = string(b)
			}
			words[i] += " (" + strings.Join(backends, ", ") + ")"
		}
	}
	return strings.Join(words, "; ")
}

// devicesText lists what a machine renders on: "2 on cpu, 1 on gpu0 (RTX 3060: OPTIX, CUDA)".
func devicesText(can *lease.Capability) string {
	if can == nil {
		return ""
	}
	var words []string
	for _, d := range can.Devices() {
		text := fmt.Sprintf("%d on %s", d.Slots, d.Device)
		if i, ok := d.Device.GPU(); ok {
			g := can.GPUs[i]
			backends := make([]string, len(g.Backends))
			for k, b := range g.Backends {
				backends[k] = string(b)
			}
			text += fmt.Sprintf(" (%s: %s)", g.Model, strings.Join(backends, ", "))
		}
		words = append(words, text)
	}
	return strings.Join(words, ", ")
}

// names are the machines' names, as far as the caller may know them: a display
// without them shows IDs.
func (cl *client) names(ctx context.Context) map[authz.PeerID]string {
	peers, _ := cl.peers(ctx)
	names := make(map[authz.PeerID]string, len(peers))
	for _, p := range peers {
		names[p.ID] = p.Name
	}
	return names
}

// nameOf is a machine's name where it is known, else the ID that `peer ls` shows.
func nameOf(names map[authz.PeerID]string, id authz.PeerID) string {
	if name := names[id]; name != "" {
		return name
	}
	return id.Short()
}

// machineText is a machine's name, where it is known, and the ID that `peer ls`
// shows.
func machineText(names map[authz.PeerID]string, id authz.PeerID) string {
	if name := names[id]; name != "" {
		return name + " (" + id.Short() + ")"
	}
	return id.Short()
}

func machinesText(names map[authz.PeerID]string, ids []authz.PeerID) string {
	words := make([]string, len(ids))
	for i, id := range ids {
		words[i] = machineText(names, id)
	}
	return strings.Join(words, ", ")
}

func (c *cli) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show this machine's peer: its farm, what it renders, whether it may be switched off",
		Args:  takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			s, err := cl.status(cmd.Context())
			if err != nil {
				return err
			}
			return c.print(s, func() {
				leader, meanwhile := "", ""
				switch {
				case s.Leaderless != nil:
					leader = s.Leaderless.Text
					meanwhile = s.Leaderless.Meanwhile
				case s.Leader == "": // one was found just now
					leader = "none at this moment"
				case s.Leader == s.Peer:
					leader = "this machine"
				default:
					leader = machineText(cl.names(cmd.Context()), s.Leader)
				}
				if s.LeaderVia != "" {
					leader += ", through " + machineText(cl.names(cmd.Context()), s.LeaderVia)
				}
				var mixed, behind string
				if s.Leader != "" {
					mixed, behind, _ = cl.versions(cmd.Context())
				}
				machine, blender := capabilityText(&s.Capability)
				if blender == "" {
					blender = "none: this machine cannot render"
				}
				sandbox := s.Capability.Sandbox
				if sandbox == "" {
					sandbox = "none: Blender runs unconfined here"
				}
				running := make([]string, len(s.Running))
				for i, t := range s.Running {
					if running[i] = (lease.TaskID{Job: t.Job, Index: t.Task}).String(); t.Device != "" {
						running[i] += " on " + string(t.Device)
					}
				}
				c.facts("machine", s.Name, "peer", s.Peer.Short(), "farm", s.FarmName,
					"roles", strings.Join(s.Roles, ", "), "leader", leader, "meanwhile", meanwhile, "connected peers", connectedText(s), "from other networks", reachText(s.Reach, func() map[authz.PeerID]string { return cl.names(cmd.Context()) }),
					"hardware", machine, "labels", strings.Join(s.Capability.Labels, ", "), "blender", blender, "sandbox", sandbox,
					"rendering", strings.TrimSpace(fmt.Sprintf("%d of %d slots %s", len(s.Running), s.Capability.TotalSlots(), strings.Join(running, ", "))),
					"store", fmt.Sprintf("%s of %s, %s free on its disk", bytesText(s.Store.Bytes), bytesText(s.Store.Quota), bytesText(s.Store.Free)),
					"drained", s.Drained, "takes no work", s.Full, "may be switched off", mayLeave(s), "api", strings.Join(append([]string{cl.base}, s.HTTPS...), " "), "CA fingerprint", strings.Join(s.CA, ", "), "version", s.Version,
					"versions differ", mixed, "farm's level", behind)
			})
		},
	}
}

// connectedText counts the machines that this one is connected with.
func connectedText(s httpapi.Status) string {
	if s.Reach.Relayed == 0 {
		return fmt.Sprint(s.Connected)
	}
	return fmt.Sprintf("%d, of which %d through a relay", s.Connected, s.Reach.Relayed)
}

// reachText says how machines of other networks reach this one; "" where nobody elsewhere
// could tell. The names are asked for where they are needed.
func reachText(r httpapi.Reach, names func() map[authz.PeerID]string) string {
	var words []string
	switch {
	case r.From == lease.ReachPublic && len(r.At) > 0:
		words = append(words, "reached at "+strings.Join(r.At, ", "))
	case r.From == lease.ReachPublic:
		words = append(words, "taken to be reached, as --relay on says")
	case len(r.Through) > 0:
		words = append(words, "reached through "+machinesText(names(), r.Through))
	case r.From == lease.ReachNAT:
		words = append(words, "behind a router, and no member relays: "+httpapi.OpenAPort)
	}
	if r.Relays {
		words = append(words, fmt.Sprintf("relays for others, %s now", count(r.Circuits, "connection")))
	}
	return strings.Join(words, "; ")
}

// mayLeave says whether this machine may be switched off now, and why not.
func mayLeave(s httpapi.Status) string {
	switch {
	case s.Parting != nil:
		return partingText(*s.Parting)
	case s.Waiting > 0:
		return fmt.Sprintf("not now: it alone has %s to submit", count(s.Waiting, "job"))
	case s.Unkept > 0:
		return fmt.Sprintf("not known, as no coordinator can be asked: %s may be on this machine alone", count(s.Unkept, "finished frame"))
	}
	return "not known, as no coordinator can be asked"
}

// partingText says whether a machine may be switched off, and what hangs on it.
func partingText(p lease.Parting) string {
	var grave, light []string
	for _, r := range p.Reasons {
		if r.Grave {
			grave = append(grave, r.Text)
		} else {
			light = append(light, r.Text)
		}
	}
	switch {
	case len(grave) > 0:
		return "not now: " + strings.Join(grave, "; ")
	case len(light) > 0:
		return "yes, though " + strings.Join(light, "; ")
	}
	return "yes"
}

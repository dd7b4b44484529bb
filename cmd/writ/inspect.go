package main

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/caveats"
)

func newInspect(a *app) *cobra.Command {
	var token tokenFlags
	cmd := &cobra.Command{
		Use:   "inspect",
		Short: "show what a token says of itself, offline",
		Long: `Show what a token says of itself. No key is needed, and nothing that is shown is
authenticated: anyone can write a token that says anything. writ verify decides.`,
		Example: `  writ mint --audience corp --subject agent-42 --owner owner@corp.example --purpose Q3 \
    -c 'action read' > t
  writ inspect < t`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.inspect(cmd, &token) },
	}
	token.add(cmd)
	return cmd
}

// inspection is what --output json prints.
type inspection struct {
	Authenticated bool                  `json:"authenticated"` // always false
	ID            capability.TokenID    `json:"id"`
	IssuedAt      time.Time             `json:"issued_at"`
	NotAfter      time.Time             `json:"not_after"`
	Expired       bool                  `json:"expired"`
	Audience      string                `json:"audience"`
	Subject       string                `json:"subject"`
	Epoch         uint32                `json:"epoch"`
	Generation    uint32                `json:"generation"`
	Branch        capability.BranchID   `json:"branch"`
	Size          int                   `json:"size"`
	Caveats       []inspectedCaveat     `json:"caveats"`
	Discharges    []inspectedDischarges `json:"discharges,omitempty"`
}

type inspectedCaveat struct {
	Condition   string `json:"condition,omitempty"`
	Description string `json:"description,omitempty"`
	Issued      bool   `json:"issued"`
	ThirdParty  string `json:"third_party,omitempty"` // short name of the sealed id
	Location    string `json:"location,omitempty"`
	Discharged  bool   `json:"discharged,omitempty"`
}

type inspectedDischarges struct {
	Answers string            `json:"answers"`
	Caveats []inspectedCaveat `json:"caveats"`
}

func (a *app) inspect(cmd *cobra.Command, from *tokenFlags) error {
	token, err := from.read(cmd)
	if err != nil {
		return err
	}
	ins, err := token.Inspect()
	if err != nil {
		return err
	}
	v := a.inspection(ins)
	a.say(cmd, "unverified: this is what the token says of itself; writ verify decides")
	return a.emit(cmd, v, func(p *printer) { a.printInspection(p, v) })
}

func (a *app) inspection(ins *capability.Inspection) *inspection {
	id := &ins.Identifier
	v := &inspection{
		ID: id.ID, IssuedAt: id.ID.Time(), NotAfter: id.NotAfter, Expired: a.now().After(id.NotAfter),
		Audience: id.Audience, Subject: id.Subject, Epoch: id.Epoch, Generation: id.Generation,
		Branch: ins.Branch, Size: ins.Size,
		Caveats: inspectCaveats(ins.Caveats, id.Issued),
	}
	answered := map[string]bool{}
	for _, d := range ins.Discharges {
		name := sealedName(d.CaveatID)
		answered[name] = true
		v.Discharges = append(v.Discharges, inspectedDischarges{Answers: name, Caveats: inspectCaveats(d.Caveats, 0)})
	}
	for i := range v.Caveats {
		v.Caveats[i].Discharged = answered[v.Caveats[i].ThirdParty]
	}
	return v
}

func inspectCaveats(in []capability.InspectedCaveat, issued int) []inspectedCaveat {
	out := make([]inspectedCaveat, len(in))
	for i, c := range in {
		out[i] = inspectedCaveat{Issued: i < issued}
		if c.ThirdParty {
			out[i].ThirdParty, out[i].Location = sealedName(c.CaveatID), c.Location
			continue
		}
		out[i].Condition, out[i].Description = c.Condition, caveats.Describe(c.Condition)
	}
	return out
}

// sealedName is a short name for a sealed caveat id, to match caveat and discharge by eye.
func sealedName(id []byte) string {
	sum := sha256.Sum256(id)
	return hex.EncodeToString(sum[:6])
}

func (a *app) printInspection(p *printer, v *inspection) {
	p.field("id", v.ID.String())
	p.field("audience", v.Audience)
	p.field("subject", v.Subject)
	p.field("issued", a.when(v.IssuedAt))
	p.field("not after", a.when(v.NotAfter))
	p.field("key", fmt.Sprintf("epoch %d, generation %d", v.Epoch, v.Generation))
	p.field("branch", v.Branch.String())
	p.field("size", strconv.Itoa(v.Size)+" bytes")
	for i, c := range v.Caveats {
		by := "added"
		if c.Issued {
			by = "issued"
		}
		printCaveat(p, fmt.Sprintf("%3d %-6s", i+1, by), c)
	}
	for _, d := range v.Discharges {
		p.field("discharge", "of "+d.Answers)
		for i, c := range d.Caveats {
			printCaveat(p, fmt.Sprintf("%3d %-6s", i+1, ""), c)
		}
	}
}

func printCaveat(p *printer, at string, c inspectedCaveat) {
	if c.ThirdParty == "" {
		p.line("%s  %s", at, c.Condition)
		p.line("%10s    %s", "", c.Description)
		return
	}
	state := "not discharged here"
	if c.Discharged {
		state = "a discharge is here"
	}
	p.line("%s  third party %s at %s", at, c.ThirdParty, strconv.QuoteToASCII(c.Location))
	p.line("%10s    someone else must agree; %s", "", state)
}

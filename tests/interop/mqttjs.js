// MQTT.js, driven by lines of JSON: a command on stdin, its answer and every message on stdout.
//
//   {"id": 1, "client": "a", "do": "subscribe", "filters": [["devices/+/up/#", 1]]}
//   {"id":1,"answer":[1]}                    or {"id":1,"error":"...","code":5}
//   {"client":"a","number":0,"topic":"...","payload":"...","qos":1,"retain":false,"dup":false}
//
// One process has many clients, each under a name that the test gives it.
'use strict'

const fs = require('fs')
const readline = require('readline')
const mqtt = require('mqtt')

const clients = new Map()
const counts = new Map()

const say = (value) => process.stdout.write(JSON.stringify(value) + '\n')

function told (name) {
  return (topic, payload, packet) => {
    const number = counts.get(name) || 0
    counts.set(name, number + 1)
    const { qos, retain, dup } = packet
    say({ client: name, number, topic, payload: payload.toString(), qos, retain, dup })
  }
}

function connect ({ client: name, host, port, ca, cert, key, options, holdsAcks }, answer) {
  const client = mqtt.connect({
    protocol: 'mqtts',
    host,
    port,
    ca: fs.readFileSync(ca),
    cert: fs.readFileSync(cert),
    key: fs.readFileSync(key),
    reconnectPeriod: 0,
    // A library keeps what was not acknowledged and sends it again itself; each scenario has stores of its own.
    ...options
  })
  clients.set(name, client)
  if (holdsAcks) {
    // What MQTT.js calls before it acknowledges: without the callback it never does.
    client.handleMessage = (packet) => told(name)(packet.topic, packet.payload, packet)
  } else {
    client.on('message', told(name))
  }
  client.once('connect', (packet) => answer({ code: packet.returnCode, present: packet.sessionPresent }))
  client.on('error', (error) => answer(null, error))
  client.on('close', () => say({ client: name, event: 'close' }))
}

const commands = {
  connect,
  subscribe ({ client, filters }, answer) {
    const asked = Object.fromEntries(filters.map(([topic, qos]) => [topic, { qos }]))
    clients.get(client).subscribe(asked, (error, granted, packet) => {
      answer(packet ? packet.granted : granted.map((one) => one.qos), packet ? null : error)
    })
  },
  unsubscribe ({ client, filters }, answer) {
    clients.get(client).unsubscribe(filters, (error) => answer(true, error))
  },
  publish ({ client, topic, payload, qos, retain }, answer) {
    clients.get(client).publish(topic, payload, { qos, retain }, (error) => answer(true, error))
  },
  disconnect ({ client }, answer) {
    clients.get(client).end(false, {}, () => answer(true))
  },
  drop ({ client }, answer) {
    clients.get(client).once('close', () => answer(true))
    clients.get(client).stream.destroy()
  },
  close ({ client }, answer) {
    clients.get(client).end(true, {}, () => answer(true))
  }
}

readline.createInterface({ input: process.stdin }).on('line', (line) => {
  const command = JSON.parse(line)
  let isAnswered = false
  commands[command.do](command, (value, error) => {
    if (isAnswered) return
    isAnswered = true
    say(error ? { id: command.id, error: error.message, code: error.code } : { id: command.id, answer: value })
  })
}).on('close', () => process.exit(0))

say({ ready: true, node: process.version })
